"""Texts in tokens where what stands before must keep its own: continuations, and options.

Pure functions of a tokenizer and texts. Tokenizers differ in what they do to the start of a text,
so what follows a prompt is never tokenised by itself where that can be helped.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from pipeline.data.prompts import Row, row_of


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text, and none that the tokenizer would add."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def continuation(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> list[int]:
    """The tokens of `text` behind a prompt whose tokens stay as they are without it.

    Tokenised by itself only where the last token of the prompt would grow into it.
    """
    before, whole = encode(tokenizer, prompt), encode(tokenizer, prompt + text)
    if whole[: len(before)] == before:
        return whole[len(before) :]
    return encode(tokenizer, text)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two lists begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def split_options(answers: Sequence[list[int]]) -> tuple[list[int], tuple[tuple[int, ...], ...]]:
    """What all answers begin with, and what each goes on with, without their common end."""
    begin = _shared(answers)
    rest = [each[begin:] for each in answers]
    end = _shared([each[::-1] for each in rest])
    return answers[0][:begin], tuple(tuple(each[: len(each) - end]) for each in rest)


def option_rows(
    before: Sequence[int], options: Sequence[Sequence[int]], *, cut: bool = False
) -> tuple[Row, ...]:
    """The rows in which options are compared that all follow the same tokens.

    Returns:
        One row whose only target stands for any of them, where each is one token; else a row for
        each, whose targets are the option's tokens.
    """
    rows = tuple(row_of(before, option, cut=cut) for option in options)
    if any(len(option) > 1 for option in options):
        return rows
    # Whichever option stands in that place: a causal model sees none of it.
    return (replace(rows[0], options=tuple(option[0] for option in options)),)


def _shared(lists: Sequence[list[int]]) -> int:
    """How many ids all lists begin with alike, at least one of each left over."""
    return min(min(map(len, lists)) - 1, *(common(lists[0], each) for each in lists[1:]))
