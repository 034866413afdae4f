"""From the plan to a rank's micro-batches, in worker processes, from any step on.

A work item is a step, so order and content do not depend on the number of workers, and a resumed
run starts at any step at once. Content faults are skipped and counted; what is fatal travels as a
value, so that all ranks can agree to stop.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import Dataset

from pipeline.data.collate import Batch, Sample
from pipeline.data.faults import ContentFault
from pipeline.data.plan import Plan, arrange
from pipeline.data.prompts import MakeRows, Row
from pipeline.data.reader import RawRecord, ShardReader
from pipeline.data.workers import LoadedAhead, WorkerDeathError
from pipeline.errors import DataError


class ImageSource(Protocol):
    """Where a record's image tensor comes from: decoded here, or a cache of features."""

    def __call__(self, reader: ShardReader, raw: RawRecord, shard: int, record: int) -> Tensor:
        """(3, H, W), (C,) or (k, C); raises ContentFault for an unusable image."""


@dataclass(frozen=True)
class DecodedImages:
    """Decodes and transforms the image itself."""

    transform: Callable[[Any], Tensor]
    image_size: int

    def __call__(self, reader: ShardReader, raw: RawRecord, shard: int, record: int) -> Tensor:
        """(3, H, W)"""
        return self.transform(reader.image(raw, draft_size=self.image_size))


@dataclass
class RankStep:
    """One step's work of one rank."""

    step: int
    batches: list[Batch]
    records: int = 0  # read by this rank
    faults: Counter[str] = field(default_factory=Counter)  # by reason
    examples: list[str] = field(default_factory=list)  # one line a fault, for messages
    fatal: str | None = None
    by_set: dict[str, int] = field(default_factory=dict)  # records of all ranks; for a mixture
    io_retries: int = 0  # reads that a disk or a server had to be asked for again
    unstaged: int = 0  # shards that could not be copied to the stage, since the step before
    worker_restarts: int = 0  # before this step came


@dataclass(frozen=True)
class Share:
    """Which part of every global batch this rank reads."""

    rank: int
    ranks: int
    ranks_per_node: int
    micro_batch: int


@dataclass(frozen=True)
class StepDataset(Dataset[RankStep]):
    """The steps of one rank as a map-style dataset: item k is step k."""

    reader: ShardReader
    plan: Plan
    share: Share
    collate: Callable[[list[Sample]], Batch]
    images: ImageSource | None  # None: text alone
    rows: MakeRows | None = None  # for an LM; None: the collator takes captions
    captions: str = "all"  # all, or one (drawn by seed, epoch and key)
    seed: int = 0
    strict: bool = False
    sets: tuple[str, ...] = ()  # names of a mixture's sets

    def __getitem__(self, step: int) -> RankStep:
        """The micro-batches of global step `step`; never raises for a fault of the data."""
        epoch, k = divmod(step, self.plan.steps_per_epoch)
        items = self.plan.step(epoch, k)
        loaded = RankStep(step, [])
        retried, unstaged = self.reader.retried, self.reader.unstaged
        if self.sets:
            counts = self.plan.records_by_set(items)
            loaded.by_set = dict(zip(self.sets, counts, strict=True))
        try:
            mine = arrange(
                self.reader.text_bytes(items),
                micro_batch=self.share.micro_batch,
                ranks=self.share.ranks,
                ranks_per_node=self.share.ranks_per_node,
            )[self.share.rank]
            self.reader.fetch({int(s) for positions in mine for s in items[positions, 0]})
            for positions in mine:
                chosen = [(int(s), int(r)) for s, r in items[positions]]
                found = [self._sample(s, r, epoch, loaded) for s, r in chosen]
                loaded.batches.append(self.collate([each for each in found if each is not None]))
        except DataError as error:
            loaded.fatal = self.said(step, error)
        loaded.io_retries = self.reader.retried - retried
        loaded.unstaged = self.reader.unstaged - unstaged
        return loaded

    def said(self, step: int, error: DataError) -> str:
        """An error's text, with who found it."""
        return f"{error} (rank {self.share.rank}, step {step + 1})"

    def _sample(self, shard: int, record: int, epoch: int, loaded: RankStep) -> Sample | None:
        loaded.records += 1
        try:
            raw = self.reader.read(shard, record)
            texts = _captions(raw)
            if self.captions == "one":
                texts = (texts[draw(self.seed, epoch, raw.key, len(texts))],)
            rows = () if self.rows is None else self._rows(raw, texts)
            image = None
            if self.images is not None and raw.image is not None:
                image = self.images(self.reader, raw, shard, record)
        except ContentFault as fault:
            if self.strict:
                raise DataError(f"{fault} (data.strict=true stops at the first)") from fault
            loaded.faults[fault.reason] += 1
            loaded.examples.append(str(fault))
            return None
        return Sample(raw.key, self.reader.position(shard, record), texts, image, rows)

    def _rows(self, raw: RawRecord, texts: tuple[str, ...]) -> tuple[Row, ...]:
        assert self.rows is not None
        try:
            return self.rows(raw, texts)
        except ContentFault as fault:
            raise ContentFault(fault.reason, raw.shard, raw.key, fault.detail) from fault


def draw(seed: int, epoch: int, key: str, choices: int) -> int:
    """A choice that depends on the sample, never on ranks or workers."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % choices


def iterate(dataset: StepDataset, start: int, stop: int, *, workers: int) -> Iterator[RankStep]:
    """The steps from `start` to `stop`, in order, loaded ahead by `workers` processes.

    Workers that die are started again and counted; where that does not help, the step is fatal.
    """
    steps = LoadedAhead(dataset, range(start, stop), workers=workers)
    counted = 0
    try:
        for loaded in steps:
            loaded.worker_restarts, counted = steps.restarts - counted, steps.restarts
            yield loaded
    except WorkerDeathError as error:
        yield RankStep(error.number, [], fatal=dataset.said(error.number, error))


@dataclass
class Pass:
    """A data set that is read whole, as often as it is called; knows what its last reading skipped.

    Every rank gets equally many micro-batches.
    """

    dataset: StepDataset
    workers: int
    faults: Counter[str] = field(default_factory=Counter)  # of this rank, by reason

    def __call__(self) -> Iterator[Batch]:
        """The micro-batches of the whole plan."""
        self.faults.clear()
        for loaded in read_all(self.dataset, workers=self.workers):
            self.faults.update(loaded.faults)
            yield from loaded.batches


def read_all(dataset: StepDataset, *, workers: int) -> Iterator[RankStep]:
    """One pass over the whole plan; a fatal fault is raised."""
    for loaded in iterate(dataset, 0, dataset.plan.steps_per_epoch, workers=workers):
        if loaded.fatal:
            raise DataError(loaded.fatal)
        yield loaded


def _captions(raw: RawRecord) -> tuple[str, ...]:
    return tuple(raw.data["captions"])
