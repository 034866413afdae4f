"""A recipe's splits as data sets: shards, a plan over them, and what becomes of a record.

Shared by training and evaluation. Assumes shards that exist; builds readers, opens no image.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from pipeline.config import Config, DataConfig
from pipeline.data.collate import ContrastiveCollator, LanguageCollator
from pipeline.data.loader import DecodedImages, ImageSource, Share, StepDataset
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.data.plan import Plan
from pipeline.data.prompts import CaptionRows, PromptRows
from pipeline.data.reader import ShardReader
from pipeline.dist import World
from pipeline.errors import ConfigError
from pipeline.models.encoder import Clip, Transform
from pipeline.models.families import family


@dataclass(frozen=True)
class Split:
    """One split of the recipe's data: its shards and how they are read."""

    data: DataConfig
    manifest: Manifest

    @property
    def reader(self) -> ShardReader:
        """A fresh reader."""
        return ShardReader(self.manifest, max_pixels=self.data.max_pixels)

    def plan(self, global_batch: int, *, seed: int) -> Plan:
        """The training plan."""
        return Plan(
            self.manifest.sizes,
            seed=seed,
            global_batch=global_batch,
            lanes=self.data.lanes,
            window=self.data.window,
        )

    def in_order(self, global_batch: int, records: int | None = None) -> Plan:
        """Every record once, in order; only the first `records` when that is given."""
        sizes, left = [], self.manifest.records if records is None else records
        for size in self.manifest.sizes:
            sizes.append(min(size, left))
            left -= sizes[-1]
        return Plan(sizes, seed=0, global_batch=global_batch, sequential=True)


def open_split(config: Config, name: str) -> Split:
    """The split `name` of `data.shards`; ConfigError when the recipe names no folder."""
    if not config.data.shards:
        raise ConfigError(
            "data.shards is empty: name the folder that stages/prepare.py wrote, e.g. "
            "data.shards=/data/coco"
        )
    return Split(config.data, load_manifest(Path(config.data.shards) / name))


def share_of(world: World, micro_batch: int) -> Share:
    """This rank's part of every global batch."""
    return Share(world.rank, world.size, world.local_size, micro_batch)


@dataclass(frozen=True)
class Images:
    """Where a split's image tensors come from, and their shape."""

    source: ImageSource | None
    shape: tuple[int, ...]


NO_IMAGES = Images(None, ())


def decoded(transform: Transform, image_size: int) -> Images:
    """Images decoded in the loading processes."""
    source = DecodedImages(transform, image_size)
    return Images(source, (3, image_size, image_size))


def caption_dataset(
    config: Config,
    split: Split,
    plan: Plan,
    images: Images,
    tokenizer: PreTrainedTokenizerBase,
    share: Share,
    *,
    captions: str,
) -> StepDataset:
    """Rows for the LM loss (captions: all or one), or prompts for generation (captions: none)."""
    collate = prompt_collator(config, images, tokenizer)
    if captions != "none":
        row = functools.partial(family(config.family).row, config)
        rows = CaptionRows(tokenizer, row, config.data.max_tokens)
        collate = replace(collate, layout=rows)
    return StepDataset(
        reader=split.reader,
        plan=plan,
        share=share,
        collate=collate,
        images=images.source,
        captions=captions,
        seed=config.seed,
        strict=config.data.strict,
    )


def prompt_collator(
    config: Config, images: Images, tokenizer: PreTrainedTokenizerBase
) -> LanguageCollator:
    """Samples to the prompts that generation starts from."""
    return LanguageCollator(
        layout=PromptRows(tuple(family(config.family).prompt_ids(config))),
        image_shape=images.shape,
        pad_id=int(tokenizer.pad_token_id or 0),
    )


def pair_dataset(
    config: Config, split: Split, plan: Plan, clip: Clip, share: Share, *, captions: str
) -> StepDataset:
    """Image-text pairs for the contrastive loss."""
    images = decoded(clip.transform, clip.image_size)
    return StepDataset(
        reader=split.reader,
        plan=plan,
        share=share,
        collate=ContrastiveCollator(clip.tokenize, images.shape),
        images=images.source,
        captions=captions,
        seed=config.seed,
        strict=config.data.strict,
    )
