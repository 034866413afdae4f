"""The training loop. It knows steps, an engine, an objective and callbacks; no phase, no model.

Callbacks see every step and may ask to stop; whatever one rank alone can decide is agreed by all
ranks before anyone acts on it. Between steps all ranks agree whether a stop is asked for.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.data.loader import RankStep
from pipeline.dist import World, gather_json, sum_over_ranks
from pipeline.engine import Engine
from pipeline.errors import DataError
from pipeline.objectives import Objective
from pipeline.progress import Progress
from pipeline.stopping import Stopped, stop_if_asked


@dataclass(frozen=True)
class StepRecord:
    """What one step did, the same on every rank but for `loss_share` and `keys`."""

    step: int  # steps done, this one included
    loss: float
    loss_share: float  # this rank's; the shares of all ranks add up to `loss`
    keys: tuple[str, ...]  # of the records that this rank had
    grad_norm: float
    skipped: bool  # on all ranks, for gradients that were not finite
    lrs: dict[str, float]
    targets: float
    records: int
    padding: float  # fraction of the text positions that hold no token
    data_seconds: float  # waited for data, mean over ranks
    seconds: float


class Callback(Protocol):
    """Something that watches the loop; all hooks are called on every rank, in order."""

    def on_start(self, trainer: "Trainer") -> None:
        """Before the first step of this start."""

    def on_step(self, trainer: "Trainer", record: StepRecord) -> None:
        """After each step."""

    def on_finish(self, trainer: "Trainer") -> None:
        """After the segment's last step, unless a stop was asked for; again where this hook was
        broken off by one, by the start that goes on."""

    def on_stop(self, trainer: "Trainer") -> None:
        """After the last step of this start; not after an exception."""


class Trainer:
    """Runs one segment from where `progress` is to its last step, or until a callback asks."""

    def __init__(
        self,
        *,
        engine: Engine,
        objective: Objective,
        load: Callable[[int, int], Iterator[RankStep]],
        learning_rate: Callable[[int], float],
        last_step: int,
        progress: Progress,
        callbacks: Sequence[Callback],
        max_bad_records: Callable[[int], float],
    ) -> None:
        self.engine, self.objective = engine, objective
        self.world: World = engine.world
        self.progress = progress
        self.last_step = last_step
        self.stop_reason: str | None = None
        self.done = False  # finished, and everything was done that follows the last step
        self._load = load
        self._learning_rate = learning_rate
        self._callbacks = callbacks
        self._max_bad_records = max_bad_records

    @property
    def finished(self) -> bool:
        """True when the segment's last step is done."""
        return self.progress.step >= self.last_step

    def fit(self) -> None:
        """Trains; returns when the segment is done, or early with a `stop_reason`."""
        try:
            self._train()
        except Stopped as asked:
            self.stop_reason = str(asked)
        self.world.presence.outside_of_training()
        for each in self._callbacks:
            each.on_stop(self)

    def _train(self) -> None:
        for each in self._callbacks:
            each.on_start(self)
        steps = self._load(self.progress.step, self.last_step)
        while not self.finished and not self.stop_reason:
            stop_if_asked(self.world)
            record = self._train_step(steps)
            self.world.presence.steady = True
            for each in self._callbacks:
                each.on_step(self, record)
        if self.finished:
            stop_if_asked(self.world)
            for each in self._callbacks:
                each.on_finish(self)
            self.done = True

    def _train_step(self, steps: Iterator[RankStep]) -> StepRecord:
        began = time.perf_counter()
        self.world.presence.working_on(self.progress.step + 1)
        loaded = next(steps)
        keys = tuple(dict.fromkeys(key for batch in loaded.batches for key in batch.keys))
        self.world.presence.working_on(self.progress.step + 1, keys)
        waited = time.perf_counter() - began
        records, padding, waited = self._agree_on_data(loaded, waited)
        lrs = self.engine.set_lr(self._learning_rate(self.progress.updates))
        self.engine.train()
        loss = self.objective.step(loaded.batches)
        result = self.engine.step()
        share = float(loss.share)
        (total,) = sum_over_ranks([share], self.world)
        seconds = time.perf_counter() - began
        self.progress.step += 1
        self.progress.updates += not result.skipped
        self.progress.steps_skipped += result.skipped
        self.progress.seconds += seconds
        return StepRecord(
            step=self.progress.step,
            loss=total,
            loss_share=share,
            keys=keys,
            grad_norm=result.grad_norm,
            skipped=result.skipped,
            lrs=lrs,
            targets=loss.targets,
            records=records,
            padding=padding,
            data_seconds=waited,
            seconds=seconds,
        )

    def _agree_on_data(self, loaded: RankStep, waited: float) -> tuple[int, float, float]:
        """Counts of this step over all ranks; every rank stops when one cannot go on."""
        tokens, slots = _text_positions(loaded)
        local = [
            float(loaded.fatal is not None),
            loaded.records,
            sum(loaded.faults.values()),
            sum(batch.cut for batch in loaded.batches),
            tokens,
            slots,
            waited,
            loaded.io_retries,
            loaded.unstaged,
            loaded.worker_restarts,
        ]
        summed = sum_over_ranks(local, self.world)
        fatal, records, faults, cut, tokens, slots, waited, retries, unstaged, restarts = summed
        self.progress.io_retries += int(retries)
        self.progress.shards_unstaged += int(unstaged)
        self.progress.worker_restarts += int(restarts)
        if fatal or faults:
            self._count_faults(loaded)
        self.progress.records_seen += int(records)
        for name, count in loaded.by_set.items():
            before = self.progress.records_by_set.get(name, 0)
            self.progress.records_by_set[name] = before + count
        self.progress.texts_cut += int(cut)
        return int(records), 1 - tokens / max(slots, 1), waited / self.world.size

    def _count_faults(self, loaded: RankStep) -> None:
        """Adds up what was skipped, by reason; raises DataError on all ranks when it is fatal."""
        found = gather_json([loaded.fatal, dict(loaded.faults), loaded.examples[:1]], self.world)
        first = next((fatal for fatal, _, _ in found if fatal), None)
        if first:
            raise DataError(first)
        skipped = Counter(self.progress.records_skipped)
        for _, faults, _ in found:
            skipped.update(faults)
        self.progress.records_skipped = dict(skipped)
        if sum(skipped.values()) > self._max_bad_records(self.progress.step):
            example = next(line for _, _, lines in found for line in lines)
            raise DataError(
                f"{sum(skipped.values())} records could not be used, more than "
                f"data.max_bad_fraction allows ({dict(skipped)}), the last: {example}; mend the "
                "shards, or raise data.max_bad_fraction"
            )


def _text_positions(loaded: RankStep) -> tuple[float, float]:
    """Positions of the text that hold a token, and all of them; dummies do not count."""
    found = [batch.text_positions() for batch in loaded.batches if batch.keys]
    return float(sum(tokens for tokens, _ in found)), float(sum(slots for _, slots in found))
