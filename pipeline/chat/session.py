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

_Turn = tuple[Exchange, tuple[int, ...]]  # the answer's tokens, as `Answer.said`


@dataclass(frozen=True)
class _Question:
    """What was asked last: behind how many turns, and how many times before."""

    text: str
    turns: int
    attempt: int = 0


@dataclass(frozen=True)
class _Talk:
    """A conversation. Never changed in place: who takes a question back takes the one before.

    Attributes: image: (3, H, W); name: of its keys and values; before: what was said when the last
    question was put, which may be asked anew from an earlier place.
    """

    image: Tensor | None = None
    name: object = field(default_factory=object)
    before: tuple[_Turn, ...] = ()
    question: _Question | None = None
    answer: Answer | None = None

    @property
    def turns(self) -> tuple[_Turn, ...]:
        """What was said; an answer that was refused, or never began, leaves it as it was."""
        if self.question is None or self.answer is None or not self.answer.given:
            return self.before
        last = (Exchange(self.question.text, self.answer.text), self.answer.said)
        return (*self.before[: self.question.turns], last)


class Session:
    """A conversation that can be asked on, asked again, and started anew."""

    def __init__(self, model: ChatModel) -> None:
        self.model = model
        self._talk = self._last = _Talk()

    @property
    def messages(self) -> list[Message]:
        """All that was said and is being said, as pages and chat templates want it."""
        talk = self._talk
        if talk.question and talk.answer and talk.answer.over is None:
            now = Exchange(talk.question.text, talk.answer.text)
            said = [each for each, _ in talk.before[: talk.question.turns]]
            return Conversation((*said, now)).messages()
        return Conversation(tuple(each for each, _ in talk.turns)).messages()

    @property
    def unanswered(self) -> str:
        """The last question, where its answer is over and none was given; else ""."""
        talk = self._talk
        if talk.question is None or talk.answer is None or talk.answer.over is None:
            return ""
        return "" if talk.answer.given else talk.question.text

    def show(self, image: Image.Image | None) -> None:
        """Starts a new conversation, about an image; raises Refused where the model sees none."""
        self.start(None if image is None else self.model.picture(image))

    def start(self, picture: Tensor | None) -> None:
        """Starts a new conversation, about what `ChatModel.picture` made of an image, (3, H, W)."""
        self.stop()
        self._talk = self._last = _Talk(picture)

    def clear(self) -> None:
        """Starts a new conversation about the same image."""
        self.start(self._talk.image)

    def stop(self) -> None:
        """Ends the answer under way; what there is of it stays."""
        if self._talk.answer is not None:
            self._talk.answer.stop()

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
        if self._talk.question is None:
            raise Refused("There is no answer to try again; ask something first.")
        question = replace(self._talk.question, attempt=self._talk.question.attempt + 1)
        return self._put(question, replace(sampling, seed=sampling.seed + question.attempt))

    def take_back(self) -> None:
        """Makes the last question unasked: all is as before it was put, whatever came of it."""
        self.stop()
        self._talk = self._last

    def _put(self, question: _Question, sampling: Sampling) -> Answer:
        talk = self._talk
        if talk.answer is not None and talk.answer.over is None:
            raise Refused("An answer is under way; wait for its end, or stop it.")
        turns = talk.turns
        before = turns[: question.turns]
        asked = Asked(
            Conversation((*(each for each, _ in before), Exchange(question.text))),
            sampling,
            said=[said for _, said in before],
            image=talk.image,
            kept_as=talk.name,
        )
        answer = self.model.put(asked)
        self._last = talk
        self._talk = replace(talk, before=turns, question=question, answer=answer)
        return answer
