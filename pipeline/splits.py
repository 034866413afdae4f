"""A recipe's splits as data sets: shards, a plan over them, and what becomes of a record.

Shared by training and evaluation. Assumes shards that exist; builds readers, opens no image.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from pipeline.config import Config, DataConfig
from pipeline.data.cache import cache_of
from pipeline.data.collate import ContrastiveCollator, LanguageCollator
from pipeline.data.joined import JoinedManifests
from pipeline.data.loader import DecodedImages, ImageSource, Share, StepDataset
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.data.mixture import Mixture
from pipeline.data.places import below, training_places
from pipeline.data.plan import Plan
from pipeline.data.reader import ShardReader
from pipeline.data.remote import is_remote
from pipeline.data.stage import Stage
from pipeline.dist import World
from pipeline.errors import ConfigError
from pipeline.models.encoder import Clip, Transform
from pipeline.tasks import dummy_row, prompt_rows, scoring_rows, training_rows

_MOST_OPEN_SHARDS = 512  # a process may have about a thousand files open


@dataclass(frozen=True)
class Split:
    """Records that are read together: one split's shards, or those of several sets, by weight."""

    data: DataConfig
    manifests: tuple[Manifest, ...]
    weights: tuple[float, ...] = (1.0,)
    names: tuple[str, ...] = ()  # of a mixture's sets

    @property
    def records(self) -> int:
        """Records of an epoch; in a mixture a record counts as often as it comes."""
        return Mixture(self._sizes, self._sets, seed=0).records

    @property
    def fingerprint(self) -> str:
        """A hash of all shards and, in a mixture, the weights; not of where they lie."""
        first = self.manifests[0].fingerprint
        if self.weights == (1.0,):
            return first
        parts = zip((each.fingerprint for each in self.manifests), self.weights, strict=True)
        return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()

    @property
    def place(self) -> str:
        """Where the records lie, for messages."""
        return ", ".join(each.place for each in self.manifests)

    @property
    def shards(self) -> int:
        """How many there are."""
        return len(self._sizes)

    @property
    def parts(self) -> tuple["Split", ...]:
        """Each set by itself, its records once."""
        return tuple(Split(self.data, (each,)) for each in self.manifests)

    @property
    def reader(self) -> ShardReader:
        """A fresh reader."""
        # A step touches a shard of every set in every lane, and two where one ends.
        stage = Stage(Path(self.data.stage).expanduser()) if self.data.stage else None
        touched = 2 * self.data.lanes * len(self.manifests)
        return ShardReader(
            JoinedManifests([replace(each, stage=stage) for each in self.manifests]),
            max_pixels=self.data.max_pixels,
            max_image_bytes=self.data.max_image_bytes,
            open_shards=min(touched, _MOST_OPEN_SHARDS),
        )

    def plan(self, global_batch: int, *, seed: int) -> Plan:
        """The training plan; ConfigError where the cache is too small for one of its steps."""
        plan = Plan(
            self._sizes,
            sets=self._sets,
            seed=seed,
            global_batch=global_batch,
            lanes=self.data.lanes,
            window=self.data.window,
        )
        _check_cache(self.data, self.manifests, plan.lanes)
        return plan

    def in_order(self, global_batch: int, records: int | None = None) -> Plan:
        """Every record of every set once, in order; only the first `records` when that is given."""
        sizes, left = [], sum(self._sizes) if records is None else records
        for size in self._sizes:
            sizes.append(min(size, left))
            left -= sizes[-1]
        return Plan(sizes, seed=0, global_batch=global_batch, sequential=True)

    @property
    def _sizes(self) -> list[int]:
        return [size for each in self.manifests for size in each.sizes]

    @property
    def _sets(self) -> list[tuple[int, float]]:
        shards = (len(each.shards) for each in self.manifests)
        return list(zip(shards, self.weights, strict=True))


def open_split(config: Config, name: str) -> Split:
    """The split `name` of `data.shards`; ConfigError when the recipe names no folder."""
    data = config.data
    if not data.shards:
        raise ConfigError(
            "data.shards is empty: name the folder that stages/prepare.py wrote, e.g. "
            "data.shards=/data/coco; a mixture needs it too, for validation and test"
        )
    return Split(data, (load_manifest(below(data.shards, name), cache_of(data)),))


def open_training(config: Config) -> Split:
    """What the phases train on: the sets of `data.mix` or, where it is empty, the train split."""
    data = config.data
    if not data.mix:
        return open_split(config, data.train_split)
    cache = cache_of(data)
    split = Split(
        data,
        manifests=tuple(load_manifest(place, cache) for place in training_places(data)),
        weights=tuple(each.weight for each in data.mix),
        names=tuple(each.label for each in data.mix),
    )
    for i, (manifest, weight) in enumerate(zip(split.manifests, split.weights, strict=True)):
        if round(weight * manifest.records) == 0:
            raise ConfigError(
                f"data.mix[{i}].weight={weight:g}: that is no record of the {manifest.records} in "
                f"{manifest.place}; raise it, or leave the set out"
            )
    return split


def _check_cache(data: DataConfig, manifests: Sequence[Manifest], lanes: int) -> None:
    """Refuse a cache that cannot hold the shards of one step: each would be fetched ever again."""
    sizes = [
        entry.bytes
        for each in manifests
        for number, entry in enumerate(each.shards)
        if is_remote(each.where(number))
    ]
    need = sum(sorted(sizes, reverse=True)[: lanes * len(manifests)])
    if need > data.cache_gb * 1e9:
        raise ConfigError(
            f"data.cache_gb={data.cache_gb:g}: one step reads from {lanes} lanes, whose remote "
            f"shards take up to {need / 1e9:.3g} GB; raise it, or lower data.lanes"
        )


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
    """Rows for the LM loss, or for generation what it starts from.

    captions: `all` or `one` of a record, where the task is captions; `none`: prompts alone;
    `options`: where the task is questions, the rows in which their options are compared.
    """
    asks = captions == "none"
    makers = {"none": prompt_rows, "options": scoring_rows}
    return StepDataset(
        reader=split.reader,
        plan=plan,
        share=share,
        collate=language_collator(config, images, tokenizer, prompts=asks),
        images=images.source,
        rows=makers.get(captions, training_rows)(config, tokenizer),
        captions="all" if captions in makers else captions,
        seed=config.seed,
        strict=config.data.strict,
        sets=split.names,
    )


def language_collator(
    config: Config, images: Images, tokenizer: PreTrainedTokenizerBase, *, prompts: bool
) -> LanguageCollator:
    """Rows to batches; prompts: for generation, which goes on where a row ends."""
    return LanguageCollator(
        image_shape=images.shape,
        pad_id=int(tokenizer.pad_token_id or 0),
        dummy=dummy_row(config, tokenizer),
        left=prompts,
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
        sets=split.names,
    )
