"""Texts become rows of token ids: tokenisation, cutting, which tokens are targets.

A row is what comes before its target (image slots, a prompt), the target, and EOS. What comes
before is the family's business: its `layout` comes in from outside. Assumes nothing about padding
or batches (`collate.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from pipeline.data.reader import RawRecord
from pipeline.data.tokens import encode

IGNORE = -100  # in labels: no target

# A prompt's ids, and whether there is an image -> all that stands in a row before its target: BOS,
# image slots and the prompt in whatever order the family wants.
Layout = Callable[[Sequence[int], bool], list[int]]


@dataclass(frozen=True)
class Row:
    """One row: ids and labels of equal length; `cut` says that the text was too long.

    `weights`, of the same length, is what each target counts in the loss; None: 1 each. `options`,
    where a row is to be scored: the tokens of which one stands in the place of its only target.
    `question`: rows of a record that are compared with one another have the same.
    """

    ids: list[int]
    labels: list[int]
    cut: bool = False
    weights: list[float] | None = None
    options: tuple[int, ...] = ()
    question: int = 0


# A record and those of its captions that count -> its rows; ContentFault where it has none.
MakeRows = Callable[[RawRecord, Sequence[str]], tuple[Row, ...]]


def row_of(before: Sequence[int], target: Sequence[int], *, cut: bool = False) -> Row:
    """The row with that target; without one, what generation starts from."""
    return Row([*before, *target], [*[IGNORE] * len(before), *target], cut)


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


@dataclass(frozen=True)
class CaptionRows:
    """A training row for each caption, which ends in an EOS.

    (The reference, CLIP_prefix_caption train.py:70, ends captions with nothing and generates until
    the first full stop.)
    """

    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    max_tokens: int  # of the caption, EOS included

    def __call__(self, raw: RawRecord, captions: Sequence[str]) -> tuple[Row, ...]:
        """The rows of a record; raises what `encode` does."""
        before = self.layout([], raw.image is not None)
        return tuple(self._row(before, caption) for caption in captions)

    def _row(self, before: Sequence[int], caption: str) -> Row:
        ids = encode(self.tokenizer, caption.strip())
        kept = ids[: self.max_tokens - 1]
        eos = int(self.tokenizer.eos_token_id)
        return row_of(before, [*kept, eos], cut=len(kept) < len(ids))


@dataclass(frozen=True)
class PromptRows:
    """What the generation of a caption starts from, whatever the texts of the record."""

    layout: Layout

    def __call__(self, raw: RawRecord, captions: Sequence[str]) -> tuple[Row, ...]:
        """One row a record; no position is a target."""
        return (row_of(self.layout([], raw.image is not None), []),)
