"""Texts in tokens where what stands before must keep its own: continuations, and options.

Pure functions of a tokenizer and texts. Tokenizers differ in what they do to the start of a text,
so what follows a prompt is never tokenised by itself where that can be helped.
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from pipeline.data.faults import ContentFault

CONTROL_TOKEN = "control token in the text"  # the reason of such a fault


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, *, with_controls: bool = False
) -> list[int]:
    """The tokens of a text, and none that the tokenizer would add.

    Args:
        tokenizer: of the language model.
        text: what people wrote. "</s>" in it is four characters, not the end of an answer.
        with_controls: the text is a template's, whose control tokens are what they say.

    Raises:
        ContentFault: this tokenizer finds BOS or EOS even among plain characters.
    """
    ids = list(
        tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not with_controls)
    )
    if not with_controls and not {tokenizer.bos_token_id, tokenizer.eos_token_id}.isdisjoint(ids):
        raise ContentFault(CONTROL_TOKEN, detail="BOS or EOS, which this tokenizer cannot split")
    return ids


def check_plain(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> None:
    """Refuses texts that could not be told from a template's control tokens around them.

    Raises:
        ContentFault: one of the tokenizer's special tokens is written in one of them.
    """
    special = [each.content for each in tokenizer.added_tokens_decoder.values() if each.special]
    for text in texts:
        for token in special:
            if token in text:
                raise ContentFault(CONTROL_TOKEN, detail=token)


def continuation(
    tokenizer: PreTrainedTokenizerBase, prompt: str, text: str, *, with_controls: bool = False
) -> list[int]:
    """The tokens of `text` behind a prompt whose tokens stay as they are without it.

    Tokenised by itself only where the last token of the prompt would grow into it. `with_controls`
    and what is raised are those of `encode`.
    """
    before = encode(tokenizer, prompt, with_controls=with_controls)
    whole = encode(tokenizer, prompt + text, with_controls=with_controls)
    if whole[: len(before)] == before:
        return whole[len(before) :]
    return encode(tokenizer, text, with_controls=with_controls)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two lists begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def split_options(answers: Sequence[list[int]]) -> tuple[list[int], tuple[tuple[int, ...], ...]]:
    """What all answers begin with, and what each goes on with, without their common end."""
    begin = _shared(answers)
    rest = [each[begin:] for each in answers]
    end = _shared([each[::-1] for each in rest])
    return answers[0][:begin], tuple(tuple(each[: len(each) - end]) for each in rest)


def _shared(lists: Sequence[list[int]]) -> int:
    """How many ids all lists begin with alike, at least one of each left over."""
    return min(min(map(len, lists)) - 1, *(common(lists[0], each) for each in lists[1:]))
