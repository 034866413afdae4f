"""Records become batches: padding, and which row looks at which image.

Knows tokenizers only as functions and images only as tensors or cached features; the rows of a
record (where the image goes, what is a target) were made before (`prompts.py`).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pipeline.data.prompts import IGNORE, Row
from pipeline.evaluation.options import option_table


@dataclass(frozen=True)
class Sample:
    """One readable record: its place in the data, its texts, and its image or cached features."""

    key: str
    position: int  # the record's number in the split, the same on every rank
    captions: tuple[str, ...]
    image: Tensor | None  # (3, H, W) or cached features (C,) or (k, C); None for text alone
    rows: tuple[Row, ...] = ()  # for an LM


@dataclass
class LanguageBatch:
    """A micro-batch for the LM loss: R rows of text, I images."""

    images: Tensor | None  # (I, 3, H, W)
    features: Tensor | None  # (I, C) or (I, k, C)
    image_rows: Tensor  # (R,) which image each row uses, -1 = none
    input_ids: Tensor  # (R, T) with IMAGE_SLOT where an image embedding goes
    attention_mask: Tensor  # (R, T)
    labels: Tensor  # (R, T), IGNORE where there is no target
    weights: Tensor  # (R, T)
    keys: tuple[str, ...] = ()
    cut: int = 0  # rows whose text was longer than allowed
    owner: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))  # (R,) in keys
    # (R,) number of the question in the batch; rows of one are compared with each other
    question: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    options: Tensor | None = None  # (R, O) token ids to be scored, NONE where there are fewer

    def text_positions(self) -> tuple[int, int]:
        """Positions that hold a token or an image slot, and all positions."""
        return int(self.attention_mask.sum()), self.attention_mask.numel()


@dataclass
class ContrastiveBatch:
    """A micro-batch of N image-text pairs; a record with several captions repeats its image row."""

    images: Tensor  # (I, 3, H, W)
    image_rows: Tensor  # (N,)
    text: Tensor  # (N, L) of the CLIP tokenizer
    identity: Tensor  # (N, 2) of the record and of the text; -1 for a dummy
    keys: tuple[str, ...] = ()
    cut: int = 0

    def text_positions(self) -> tuple[int, int]:
        """Positions that hold a token, and all positions.

        Whatever a tokenizer pads with is what its longest run of equal last ids shows.
        """
        return int((self.text != self.text[:, -1:]).sum()) + len(self.text), self.text.numel()


Batch = LanguageBatch | ContrastiveBatch


def to_device(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """The batch with its tensors on `device`, images and features in `dtype`."""
    moved: dict[str, Any] = {}
    for each in fields(batch):
        value = getattr(batch, each.name)
        if isinstance(value, Tensor):
            kind = dtype if each.name in ("images", "features") else value.dtype
            value = value.to(device, kind, non_blocking=True)
        moved[each.name] = value
    return type(batch)(**moved)


@dataclass(frozen=True)
class LanguageCollator:
    """Samples to a LanguageBatch.

    Where the model sees images, a batch has one at least: under ZeRO every rank runs the encoder
    and the ST network, or none does. Of text alone it is black, and no row's.
    """

    # (3, H, W), or (C,) or (k, C) where features are cached; () for a model without images
    image_shape: tuple[int, ...]
    pad_id: int
    dummy: Row  # of a batch without samples; with a target, and without image slots
    left: bool = False  # pad on the left, as generation wants it

    def __call__(self, samples: Sequence[Sample]) -> LanguageBatch:
        """The samples' rows in order; an empty list gives the zero-weight dummy."""
        if not samples:
            batch = self([Sample("", -1, (), None, (self.dummy,))])
            batch.weights.zero_()
            batch.keys, batch.cut = (), 0
            return batch
        rows = [row for sample in samples for row in sample.rows]
        owner = [i for i, sample in enumerate(samples) for _ in sample.rows]
        length = max(len(row.ids) for row in rows)
        shape = (len(rows), length)
        ids = torch.full(shape, self.pad_id)
        mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORE)
        weights = torch.ones(shape)
        for i, row in enumerate(rows):
            n = len(row.ids)
            place = slice(length - n, length) if self.left else slice(n)
            ids[i, place] = torch.tensor(row.ids)
            mask[i, place] = 1
            labels[i, place] = torch.tensor(row.labels)
            if row.weights is not None:
                weights[i, place] = torch.tensor(row.weights)
        images, slots = self._stack_images(samples)
        cached = len(self.image_shape) < 3
        return LanguageBatch(
            images=None if cached else images,
            features=images if cached else None,
            image_rows=torch.tensor([slots[i] for i in owner]),
            input_ids=ids,
            attention_mask=mask,
            labels=labels,
            weights=weights * (labels != IGNORE),
            keys=tuple(sample.key for sample in samples),
            cut=sum(row.cut for row in rows),
            owner=torch.tensor(owner),
            question=_numbered(list(zip(owner, (row.question for row in rows), strict=True))),
            options=_options([row.options for row in rows]),
        )

    def _stack_images(self, samples: Sequence[Sample]) -> tuple[Tensor | None, list[int]]:
        """The images, and each sample's place among them (-1 without one)."""
        if not self.image_shape:
            return None, [-1] * len(samples)
        images = [sample.image for sample in samples if sample.image is not None]
        places = iter(range(len(images)))
        slots = [-1 if sample.image is None else next(places) for sample in samples]
        return torch.stack(images or [torch.zeros(self.image_shape)]), slots


@dataclass(frozen=True)
class ContrastiveCollator:
    """Samples to a ContrastiveBatch."""

    tokenize: Callable[..., Tensor]  # (texts, context_length=L) -> (N, L), cut and padded
    image_shape: tuple[int, ...]

    def __call__(self, samples: Sequence[Sample]) -> ContrastiveBatch:
        """N pairs, one a caption; an empty list gives a dummy, which identity -1 marks.

        Text alone is no pair: samples without an image are left out.
        """
        samples = [sample for sample in samples if sample.image is not None]
        if not samples:
            dummy = self([Sample("", -1, ("a",), torch.zeros(self.image_shape))])
            dummy.identity.fill_(-1)
            dummy.keys = ()
            return dummy
        texts = [text for sample in samples for text in sample.captions]
        owner = [i for i, sample in enumerate(samples) for _ in sample.captions]
        identity = [(samples[i].position, text_id(t)) for i, t in zip(owner, texts, strict=True)]
        tokens = self.tokenize(texts)
        return ContrastiveBatch(
            images=torch.stack([_image(sample) for sample in samples]),
            image_rows=torch.tensor(owner),
            text=tokens,
            identity=torch.tensor(identity),
            keys=tuple(sample.key for sample in samples),
            cut=self._count_cut(texts, tokens),
        )

    def _count_cut(self, texts: list[str], tokens: Tensor) -> int:
        """How many texts lost tokens: those that one more place makes longer.

        Only rows without padding can be such, and a padded one ends in two equal ids.
        """
        full = (tokens[:, -1] != tokens[:, -2]).nonzero().flatten().tolist()
        if not full:
            return 0
        length = tokens.shape[1]
        longer = self.tokenize([texts[i] for i in full], context_length=length + 1)
        return int((longer[:, :length] != tokens[full]).any(dim=1).sum())


def _numbered(questions: Sequence[tuple[int, int]]) -> Tensor:
    """(R,) numbers from 0, a new one wherever (record, question) changes."""
    changes = [int(a != b) for a, b in pairwise([questions[0], *questions])]
    return torch.tensor(changes).cumsum(0)


def _options(rows: Sequence[Sequence[int]]) -> Tensor | None:
    """The rows' options as one table; None where no row has any."""
    return option_table([[[each] for each in row] for row in rows]) if any(rows) else None


def text_id(text: str) -> int:
    """A 63-bit number that is the same for texts alike but for case and white space."""
    digest = hashlib.sha256(" ".join(text.lower().split()).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _image(sample: Sample) -> Tensor:
    assert sample.image is not None, "a sample without an image reached an image collator"
    return sample.image
