"""Conversations in tokens: which words stand around a turn, and which tokens are the answer's.

LaVIN's words, or the chat template that comes with a tokenizer. Every answer ends in a token that
ends generation, and that is a target too. What people write never becomes a control token. Where an
image goes is the family's business.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from pipeline.data.conversations import Conversation, Exchange
from pipeline.data.faults import ContentFault
from pipeline.data.tokens import check_plain, continuation, encode
from pipeline.errors import ConfigError

# Llama 3's templates print the day; rows must not depend on it. Others do not look at this.
_DATE = "26 Jul 2024"
_PROBE = Conversation((Exchange("Who?", "You."), Exchange("And now?", "I do.")))


@dataclass(frozen=True)
class ExchangeTokens:
    """An exchange in tokens; put together in order they are the whole text.

    Attributes: asked: all from the end of the answer before to where this answer starts; said: the
    answer and the token that ends it, none while it is open.
    """

    asked: tuple[int, ...]
    said: tuple[int, ...] = ()


class ChatTemplate(Protocol):
    """A way to put conversations; without BOS, which the family's layout adds."""

    def __call__(self, conversation: Conversation) -> list[ExchangeTokens]:
        """Its exchanges in tokens; ContentFault where this one cannot be put."""


@dataclass(frozen=True)
class LavinTemplate:
    """LaVIN's words: "Instruction: question", a new line, "Response: answer", EOS.

    SOURCE: LaVIN tools/data_processing.py, eval_mme.py:390-415. The reference has single exchanges;
    here the next one follows EOS in the same words, and a system text stands before the first.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, conversation: Conversation) -> list[ExchangeTokens]:
        """Raises what `encode` does."""
        eos = int(self.tokenizer.eos_token_id)
        found = []
        for prompt, answer in self.words(conversation):
            asked = tuple(encode(self.tokenizer, prompt))
            said = (*continuation(self.tokenizer, prompt, answer), eos) if answer else ()
            found.append(ExchangeTokens(asked, said))
        return found

    @staticmethod
    def words(conversation: Conversation) -> Iterator[tuple[str, str]]:
        """Each exchange as what comes before its answer, and the answer ("" while it is open)."""
        before = f"{conversation.system}\n" if conversation.system else ""
        for each in conversation.exchanges:
            answer = "" if each.answer is None else f" {each.answer}"
            yield f"{before}Instruction: {each.question}\nResponse:", answer
            before = ""


@dataclass(frozen=True)
class TokenizerTemplate:
    """The tokenizer's own chat template.

    What an answer is, is found by rendering the conversation up to it and with it: that holds for
    every template that only ever appends, whether it marks answers itself or not. What was said is
    one text with the control tokens then, so nobody may write one.

    `ends`: the tokens at which generation stops.
    """

    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]

    def __call__(self, conversation: Conversation) -> list[ExchangeTokens]:
        """Raises ContentFault where the template rewrites what was said, or refuses a turn.

        Also where somebody wrote a control token.
        """
        found: list[ExchangeTokens] = []
        messages, text = conversation.messages(), ""
        check_plain(self.tokenizer, (each["content"] for each in messages))
        rest: tuple[int, ...] = ()  # what stands behind an answer's end
        for number, message in enumerate(messages):
            if message["role"] == "user":
                asking = self._render(messages[: number + 1], asks=True)
                asked = (*rest, *self._behind(text, asking))
                text, rest = asking, ()
                found.append(ExchangeTokens(asked))
            elif message["role"] == "assistant":
                whole = self._render(messages[: number + 1], asks=False)
                said, rest = _cut_behind(self._behind(text, whole), self.ends)
                text = whole
                found[-1] = ExchangeTokens(found[-1].asked, said)
        return self._without_bos(found)

    def _render(self, messages: Sequence[dict[str, str]], *, asks: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=asks, date_string=_DATE
            )
        except TemplateError as error:
            reason = "chat template refuses the conversation"
            raise ContentFault(reason, detail=" ".join(str(error).split())) from error
        assert isinstance(text, str)
        return text

    def _behind(self, text: str, longer: str) -> tuple[int, ...]:
        """The tokens of what `longer` adds to `text`."""
        if not longer.startswith(text):
            raise ContentFault(
                "chat template rewrites the conversation",
                detail=f"after {text[-20:]!r} an earlier turn reads otherwise",
            )
        added = longer[len(text) :]
        return tuple(continuation(self.tokenizer, text, added, with_controls=True))

    def _without_bos(self, found: list[ExchangeTokens]) -> list[ExchangeTokens]:
        first = found[0]
        if first.asked[:1] == (self.tokenizer.bos_token_id,):
            return [ExchangeTokens(first.asked[1:], first.said), *found[1:]]
        return found


def _cut_behind(
    said: tuple[int, ...], ends: Collection[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """An answer up to its end, and what the template puts behind that, a line break often."""
    last = max((i for i, each in enumerate(said) if each in ends), default=-1)
    if last < 0:
        raise ContentFault("chat template ends no answer")
    return said[: last + 1], said[last + 1 :]


def chat_template(
    name: str, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> ChatTemplate:
    """The template of that name for a tokenizer.

    Args:
        name: `lavin`, or `tokenizer` for the tokenizer's own.
        tokenizer: of the language model.
        ends: the tokens at which generation stops, EOS first.

    Raises:
        ConfigError: the tokenizer has no template, or one whose answers would not end, or that
            rewrites earlier turns, so that no answer's place is certain.
    """
    if name == "lavin":
        return LavinTemplate(tokenizer)
    if not tokenizer.chat_template:
        raise ConfigError(
            "instruct.template=tokenizer: this LLM's tokenizer has no chat template; "
            "use instruct.template=lavin"
        )
    template = TokenizerTemplate(tokenizer, tuple(ends))
    try:
        template(_PROBE)
    except ContentFault as fault:
        raise ConfigError(
            f"instruct.template=tokenizer: {fault}; use instruct.template=lavin, or name the token "
            "that ends an answer there with evaluate.stop"
        ) from fault
    return template
