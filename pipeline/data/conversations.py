"""A conversation: questions and answers in turn, as records hold it and templates render it.

Knows neither tokens nor images; that an image belongs to it, the record says. The last question may
be open: that is what is asked of a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.data.faults import ContentFault

MESSAGES = "messages"  # the field of a record's JSON

Message = dict[str, str]  # {"role": system, user or assistant, "content": text}


@dataclass(frozen=True)
class Exchange:
    """A question with its answer; None while it is open."""

    question: str
    answer: str | None = None


@dataclass(frozen=True)
class Conversation:
    """One or more exchanges; `system` says how to behave, "" for nothing."""

    exchanges: tuple[Exchange, ...]
    system: str = ""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Conversation":
        """The conversation in a record's JSON; raises ContentFault where it holds none."""
        messages = data.get(MESSAGES)
        try:
            turns = [(each["role"], each["content"]) for each in messages or ()]
        except (KeyError, TypeError) as error:
            raise ContentFault("no conversation", detail="a message without role") from error
        if not all(isinstance(text, str) for _, text in turns):
            raise ContentFault("no conversation", detail="what should be text is none")
        system = turns.pop(0)[1] if turns and turns[0][0] == "system" else ""
        roles = [role for role, _ in turns]
        if not turns or roles != ["user", "assistant"] * (len(turns) // 2):
            raise ContentFault("no conversation", detail=f"roles are {', '.join(roles) or 'none'}")
        texts = [text for _, text in turns]
        pairs = zip(texts[::2], texts[1::2], strict=True)
        return cls(tuple(Exchange(question, answer) for question, answer in pairs), system)

    @classmethod
    def asking(cls, question: str, answer: str | None = None) -> "Conversation":
        """A conversation of one exchange."""
        return cls((Exchange(question, answer),))

    @property
    def open(self) -> "Conversation":
        """The same with its last answer still to be given."""
        last = replace(self.exchanges[-1], answer=None)
        return replace(self, exchanges=(*self.exchanges[:-1], last))

    def messages(self) -> list[Message]:
        """As chat templates and records want it."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for each in self.exchanges:
            found.append({"role": "user", "content": each.question})
            if each.answer is not None:
                found.append({"role": "assistant", "content": each.answer})
        return found
