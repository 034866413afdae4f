"""The same conversation with every model: each takes a question, or none does.

So the conversations stay the same but for what the models say. A model that refuses later, in
answering, says so in its `Answer`. Knows neither pages nor terminals.
"""

import threading
from collections.abc import Callable, Sequence

from PIL import Image

from pipeline.chat.desk import Answer
from pipeline.chat.limits import Refused, Sampling
from pipeline.chat.model import ChatModel
from pipeline.chat.session import Session


class SideBySide:
    """A `Session` with each of some models. Clicks may come from several threads.

    Attributes: sessions: in the order of the models.
    """

    def __init__(self, models: Sequence[ChatModel]) -> None:
        self.sessions = [Session(each) for each in models]
        self._changing = threading.Lock()

    def show(self, image: Image.Image | None) -> None:
        """Starts anew, about an image or none.

        Raises:
            Refused: one of the models sees no images; all conversations stay.
        """
        pictures = [None if image is None else each.model.picture(image) for each in self.sessions]
        with self._changing:
            for each, picture in zip(self.sessions, pictures, strict=True):
                each.start(picture)

    def clear(self) -> None:
        """Starts anew about the same image."""
        with self._changing:
            for each in self.sessions:
                each.clear()

    def stop(self) -> None:
        """Ends what is being said."""
        for each in self.sessions:
            each.stop()

    def ask(self, text: str, sampling: Sampling) -> list[Answer]:
        """Has the next question answered by every model.

        Raises:
            Refused: as `Session.ask` of any; all conversations stay.
        """
        return self._put(lambda session: session.ask(text, sampling))

    def retry(self, sampling: Sampling) -> list[Answer]:
        """Has the last question answered again by every model.

        Raises:
            Refused: as `Session.retry` of any; all conversations stay.
        """
        return self._put(lambda session: session.retry(sampling))

    @property
    def unanswered(self) -> str:
        """The last question, where it is over and no model gave an answer; else ""."""
        questions = [each.unanswered for each in self.sessions]
        return questions[0] if all(questions) else ""

    def _put(self, put: Callable[[Session], Answer]) -> list[Answer]:
        answers: list[Answer] = []
        with self._changing:
            try:
                for each in self.sessions:
                    answers.append(put(each))
            except Refused:
                for each in self.sessions[: len(answers)]:
                    each.take_back()
                raise
        return answers
