"""One conversation with one model: what was said, about which image, and what is being said.

For one person, who clicks as they like: while an answer is under way nothing else can be asked, and
a new conversation stops it. Keeps nothing on disk.
"""

from dataclasses import dataclass, field, replace

from PIL import Image
from torch import Tensor

from pipeline.chat.desk import Answer
from pipeline.chat.limits import Refused, Sampling
from pipeline.chat.model import Asked, ChatModel
from pipeline.data.conversations import Conversation, Exchange, Message


@dataclass(eq=False)
class _Talk:
    """A conversation about one image, or none; its identity names its keys and values."""

    image: Tensor | None = None
    turns: list[tuple[Exchange, tuple[int, ...]]] = field(default_factory=list)


@dataclass(frozen=True)
class _Question:
    """What was asked last: behind how many turns, and how many times before."""

    text: str
    turns: int
    attempt: int = 0


class Session:
    """A conversation that can be asked on, asked again, and started anew."""

    def __init__(self, model: ChatModel) -> None:
        self.model = model
        self._talk = _Talk()
        self._question: _Question | None = None
        self._answer: Answer | None = None

    @property
    def messages(self) -> list[Message]:
        """All that was said and is being said, as pages and chat templates want it."""
        exchanges = [exchange for exchange, _ in self._talk.turns]
        if self._question and self._answer and self._answer.over is None:
            now = Exchange(self._question.text, self._answer.text)
            exchanges = [*exchanges[: self._question.turns], now]
        return Conversation(tuple(exchanges)).messages()

    def show(self, image: Image.Image | None) -> None:
        """Starts a new conversation, about an image; raises Refused where the model sees none."""
        self._start(None if image is None else self.model.picture(image))

    def clear(self) -> None:
        """Starts a new conversation about the same image."""
        self._start(self._talk.image)

    def stop(self) -> None:
        """Ends the answer under way; what there is of it stays."""
        if self._answer is not None:
            self._answer.stop()

    def ask(self, text: str, sampling: Sampling) -> Answer:
        """Has the next question answered.

        Raises:
            Refused: an answer is under way, or as `ChatModel.put`; the conversation stays.
        """
        return self._put(_Question(text, len(self._talk.turns)), sampling)

    def retry(self, sampling: Sampling) -> Answer:
        """Has the last question answered again; where tokens are drawn, by the next seed.

        Raises:
            Refused: as `ask`, or nothing was asked yet.
        """
        if self._question is None:
            raise Refused("There is no answer to try again; ask something first.")
        question = replace(self._question, attempt=self._question.attempt + 1)
        return self._put(question, replace(sampling, seed=sampling.seed + question.attempt))

    def _start(self, image: Tensor | None) -> None:
        self.stop()
        self._talk, self._question, self._answer = _Talk(image), None, None

    def _put(self, question: _Question, sampling: Sampling) -> Answer:
        if self._answer is not None and self._answer.over is None:
            raise Refused("An answer is under way; wait for its end, or stop it.")
        talk = self._talk
        before = talk.turns[: question.turns]

        def remember(text: str, said: tuple[int, ...]) -> None:
            talk.turns[question.turns :] = [(Exchange(question.text, text), said)]

        asked = Asked(
            Conversation((*(each for each, _ in before), Exchange(question.text))),
            sampling,
            said=[said for _, said in before],
            image=talk.image,
            kept_as=talk,
            remember=remember,
        )
        self._answer, self._question = self.model.put(asked), question
        return self._answer
