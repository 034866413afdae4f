"""Conversations become rows of token ids: for training, for generation, for yes against no.

All answers of a conversation are targets of one row, each with the token that ends it; what was
asked is not. A row that is too long ends with an earlier answer. Where the image goes is the
family's business: its `layout` comes in from outside. Assumes nothing about padding or batches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.data.chat_templates import ChatTemplate
from pipeline.data.conversations import MESSAGES, Conversation, Exchange
from pipeline.data.faults import ContentFault
from pipeline.data.prompts import IGNORE, Layout, Row, option_rows, row_of
from pipeline.data.reader import RawRecord
from pipeline.data.tokens import split_options

OPTIONS = ("Yes", "No")  # of MME's questions, in this order
TOO_LONG = "question too long"  # the reason of such a fault


@dataclass(frozen=True)
class ConversationRows:
    """Rows of one template. Lengths count all positions of a row, image slots and ends included."""

    template: ChatTemplate
    layout: Layout
    max_tokens: int = 1024

    def training(self, conversation: Conversation, *, image: bool) -> Row:
        """The row to learn from; every answer and its end are targets.

        Of a conversation that is too long the first exchanges are kept, as many as fit: each answer
        keeps all that it answers to, and its end. Where not even the first fits, as much of its
        answer is learnt as does, without an end: it has not ended there.

        Raises:
            ContentFault: the first question leaves no place for an answer.
        """
        ids: list[int] = []
        labels: list[int] = []
        for each in self.template(conversation):
            asked = list(each.asked) if ids else self.layout(each.asked, image)
            if len(ids) + len(asked) + len(each.said) > self.max_tokens:
                if ids:
                    return Row(ids, labels, cut=True)
                self._check_room(asked)
                return row_of(asked, each.said[: self.max_tokens - len(asked)], cut=True)
            ids += [*asked, *each.said]
            labels += [*[IGNORE] * len(asked), *each.said]
        return Row(ids, labels)

    def prompt(
        self, conversation: Conversation, *, image: bool, said: Sequence[Sequence[int]] = ()
    ) -> Row:
        """What the answer to the last question starts from; no position is a target.

        Of a conversation that is too long the oldest exchanges are left out.

        Args:
            conversation: what was said so far.
            image: whether it is about an image.
            said: of the first answers, the tokens as they were generated, ends included; a text can
                be written in several ways. Where there are none, those that the tokenizer finds.

        Raises:
            ContentFault: the last question alone leaves no place for an answer.
        """
        left = conversation.open
        ids = self._asked(left, image, said)
        while len(ids) >= self.max_tokens and len(left.exchanges) > 1:
            left, said = replace(left, exchanges=left.exchanges[1:]), said[1:]
            ids = self._asked(left, image, said)
        self._check_room(ids)
        return replace(row_of(ids, []), cut=len(left.exchanges) < len(conversation.exchanges))

    def options(self, question: str, options: Sequence[str], *, image: bool) -> tuple[Row, ...]:
        """The rows in which answers to a question are compared; see `option_rows`.

        Raises what `prompt` does.
        """
        before = self.prompt(Conversation.asking(question), image=image).ids
        answers = [
            list(self.template(Conversation.asking(question, each))[-1].said) for each in options
        ]
        stem, rest = split_options(answers)
        return option_rows([*before, *stem], rest)

    def _asked(
        self, conversation: Conversation, image: bool, said: Sequence[Sequence[int]]
    ) -> list[int]:
        exchanges = self.template(conversation)
        for i, own in enumerate(said):
            exchanges[i] = replace(exchanges[i], said=tuple(own) or exchanges[i].said)
        first, *others = exchanges
        ids = [*self.layout(first.asked, image), *first.said]
        for each in others:
            ids += [*each.asked, *each.said]
        return ids

    def _check_room(self, asked: Sequence[int]) -> None:
        if len(asked) >= self.max_tokens:
            raise ContentFault(
                TOO_LONG, detail=f"{len(asked)} tokens of max_tokens={self.max_tokens}"
            )


@dataclass(frozen=True)
class InstructRows:
    """Of a record, its conversation as a row (a `MakeRows`); or each caption as an answer.

    `caption_question` is what the captions of a record without conversation answer to, so that sets
    of captions can be mixed in.
    """

    rows: ConversationRows
    caption_question: str
    asks: bool = False  # what generation starts from, one row a record

    def __call__(self, raw: RawRecord, captions: Sequence[str]) -> tuple[Row, ...]:
        """Raises what `conversations_of` and `ConversationRows` do."""
        found = conversations_of(raw, captions, self.caption_question)
        seen = raw.image is not None
        if self.asks:
            return (self.rows.prompt(found[0], image=seen),)
        return tuple(self.rows.training(each, image=seen) for each in found)


@dataclass(frozen=True)
class MMERows:
    """Of a record, rows of each of its questions in order (a `MakeRows`).

    `kind`: `training` with its answer, `asking` without, `scoring` to compare yes and no.
    """

    rows: ConversationRows
    kind: Literal["training", "asking", "scoring"]

    def __call__(self, raw: RawRecord, captions: Sequence[str]) -> tuple[Row, ...]:
        """Raises what `questions_of` and `ConversationRows` do."""
        seen = raw.image is not None
        found: list[Row] = []
        for number, each in enumerate(questions_of(raw.data)):
            if self.kind == "scoring":
                compared = self.rows.options(each.question, OPTIONS, image=seen)
                found += [replace(row, question=number) for row in compared]
                continue
            asked = Conversation((each,))
            make = self.rows.prompt if self.kind == "asking" else self.rows.training
            found.append(make(asked, image=seen))
        return tuple(found)


def conversations_of(
    raw: RawRecord, captions: Sequence[str], caption_question: str
) -> list[Conversation]:
    """A record's conversation or, where it has an image and none, one for each caption.

    Raises:
        ContentFault: it has neither.
    """
    if MESSAGES in raw.data or raw.image is None:
        return [Conversation.of(raw.data)]
    return [Conversation.asking(caption_question, caption.strip()) for caption in captions]


def questions_of(data: Mapping[str, Any]) -> list[Exchange]:
    """The questions in the JSON of a record of MME, each with Yes or No.

    Raises:
        ContentFault: it holds none.
    """
    listed = data.get("questions")
    if not isinstance(listed, list) or not listed or not isinstance(data.get("subtask"), str):
        raise ContentFault("no MME questions")
    found = [(each.get("question"), each.get("answer")) for each in listed]
    if not all(isinstance(text, str) and answer in OPTIONS for text, answer in found):
        raise ContentFault("no MME questions", detail="a question without Yes or No")
    return [Exchange(question, answer) for question, answer in found]
