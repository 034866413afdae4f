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
from pipeline.chat.side_by_side import SideBySide
from pipeline.data.conversations import Message

_CUT = {LENGTH: "The answer was cut at the most tokens.", TIME: "The answer ran out of time."}
_NOT_BEGUN = "The question was stopped before its answer began."


class Visit:
    """A conversation with each model, about the same image."""

    def __init__(self, models: Sequence[ChatModel]) -> None:
        self._all = SideBySide(models)
        self._limits = models[0].limits

    def messages(self) -> list[list[Message]]:
        """What was said and is being said, by model."""
        return [each.messages for each in self._all.sessions]

    def ask(self, text: str, sampling: Sampling) -> Iterator[tuple[str | None, str]]:
        """Asks every model, and comes back whenever something has grown.

        Yields: what to write where the question was, None to leave that alone, and a remark (""
        for none). First nothing is left of the question; all of it, to be corrected or asked again,
        where no model takes it or gives an answer.
        """
        try:
            answers = self._all.ask(text, sampling)
        except Refused as refusal:
            yield text, str(refusal)
            return
        left: str | None = ""
        for remark in self._told(answers):
            yield left, remark
            left = None
        if unanswered := self._all.unanswered:
            yield unanswered, self._remark(answers)

    def retry(self, sampling: Sampling) -> Iterator[str]:
        """Asks every model the last question again; yields a remark whenever something grew."""
        try:
            answers = self._all.retry(sampling)
        except Refused as refusal:
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
            self._all.show(image)
        except Refused as refusal:
            image, remark = None, str(refusal)
            self._all.show(None)
        return image, remark

    def clear(self) -> None:
        """Starts anew about the same image."""
        self._all.clear()

    def stop(self) -> None:
        """Ends what is being said."""
        self._all.stop()

    def _told(self, answers: Sequence[Answer]) -> Iterator[str]:
        for _ in follow(answers):
            yield self._remark(answers)
        yield self._remark(answers)

    def _remark(self, answers: Sequence[Answer]) -> str:
        """What is to be known of answers: refusals, notes, cuts; by model where there are two."""
        found = []
        for session, answer in zip(self._all.sessions, answers, strict=True):
            name = f"{session.model.name}: " if len(answers) > 1 else ""
            found += [f"{name}{each}" for each in _remarks(session, answer) if each]
        return "\n".join(found)


def _remarks(session: Session, answer: Answer) -> list[str]:
    try:
        answer.check()
    except Refused as refusal:
        return [str(refusal)]
    cut = _CUT.get(answer.over or "", "")
    return [answer.note, cut or (_NOT_BEGUN if session.unanswered else "")]
