"""Texts become rows of token ids: tokenisation, cutting, which tokens are targets.

Where the image goes in a row is the family's business: its `row` function comes in from outside.
Assumes nothing about padding or batches (`collate.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

IGNORE = -100  # in labels: no target
# Caption ids and the EOS id -> (input ids, labels), both with the image's place in them.
MakeRow = Callable[[Sequence[int], int], tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Row:
    """One row: ids and labels of equal length; `cut` says that the text was too long.

    `weights`, of the same length, is what each target counts in the loss; None: 1 each.
    """

    ids: list[int]
    labels: list[int]
    cut: bool = False
    weights: list[float] | None = None


@dataclass(frozen=True)
class CaptionRows:
    """The training row of a caption, which ends in an EOS.

    (The reference, CLIP_prefix_caption train.py:70, ends captions with nothing and generates until
    the first full stop.)
    """

    tokenizer: PreTrainedTokenizerBase
    make_row: MakeRow
    max_tokens: int  # of the caption, EOS included

    def __call__(self, caption: str) -> Row:
        """The row of one caption."""
        ids = self.tokenizer.encode(caption.strip(), add_special_tokens=False)
        kept = ids[: self.max_tokens - 1]
        row, labels = self.make_row(kept, int(self.tokenizer.eos_token_id))
        return Row(row, labels, cut=len(kept) < len(ids))


@dataclass(frozen=True)
class PromptRows:
    """What generation starts from, whatever the text of the record."""

    ids: tuple[int, ...]

    def __call__(self, caption: str) -> Row:
        """The prompt; no position is a target."""
        return Row(list(self.ids), [IGNORE] * len(self.ids))
