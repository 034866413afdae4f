"""One visitor of the page: the same questions to every model, and what there is to show of them.

Knows sessions, and nothing of how a page looks.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from pipeline.chat.desk import LENGTH, TIME, Answer, follow
from pipeline.chat.limits import Refused, Sampling
from pipeline.chat.model import ChatModel
from pipeline.chat.session import Session
from pipeline.data.conversations import Message

_CUT = {LENGTH: "The answer was cut at the most tokens.", TIME: "The answer ran out of time."}


class Visit:
    """A conversation with each model, about the same image."""

    def __init__(self, models: Sequence[ChatModel]) -> None:
        self._sessions = [Session(each) for each in models]
        self._limits = models[0].limits

    def messages(self) -> list[list[Message]]:
        """What was said and is being said, by model."""
        return [each.messages for each in self._sessions]

    def ask(self, text: str, sampling: Sampling) -> Iterator[tuple[str, str]]:
        """Asks every model, and comes back whenever something has grown.

        Yields: what is left of the question to be corrected, and a remark ("" for none).
        """
        answers: list[Answer] = []
        try:
            for each in self._sessions:
                answers.append(each.ask(text, sampling))
        except Refused as refusal:
            _stop(answers)
            yield text, str(refusal)
            return
        for remark in self._told(answers):
            yield "", remark

    def retry(self, sampling: Sampling) -> Iterator[str]:
        """Asks every model the last question again; yields a remark whenever something grew."""
        answers: list[Answer] = []
        try:
            for each in self._sessions:
                answers.append(each.retry(sampling))
        except Refused as refusal:
            _stop(answers)
            yield str(refusal)
            return
        yield from self._told(answers)

    def show(self, file: Path | None) -> tuple[Image.Image | None, str]:
        """Starts anew, about an image file; None: about none.

        Returns: the image to be shown, and a remark. A file that is none leaves no image: an answer
        would be about another than the visitor thinks.
        """
        image, remark = None, ""
        try:
            image = None if file is None else self._limits.open_file(file)
            for each in self._sessions:
                each.show(image)
        except Refused as refusal:
            image, remark = None, str(refusal)
            for each in self._sessions:
                each.show(None)
        return image, remark

    def clear(self) -> None:
        """Starts anew about the same image."""
        for each in self._sessions:
            each.clear()

    def stop(self) -> None:
        """Ends what is being said."""
        for each in self._sessions:
            each.stop()

    def _told(self, answers: Sequence[Answer]) -> Iterator[str]:
        for _ in follow(answers):
            yield self._remark(answers)
        yield self._remark(answers)

    def _remark(self, answers: Sequence[Answer]) -> str:
        """What is to be known of answers: refusals, notes, cuts; by model where there are two."""
        found = []
        for session, answer in zip(self._sessions, answers, strict=True):
            try:
                answer.check()
                said = [answer.note, _CUT.get(answer.over or "", "")]
            except Refused as refusal:
                said = [str(refusal)]
            name = f"{session.model.name}: " if len(answers) > 1 else ""
            found += [f"{name}{each}" for each in said if each]
        return "\n".join(found)


def _stop(answers: Sequence[Answer]) -> None:
    for each in answers:
        each.stop()
