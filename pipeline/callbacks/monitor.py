"""Curves and terminal lines: what a run shows while it goes on.

Reduces over ranks once every `log_every` steps, never in between. How curves get to TensorBoard
stands in `board.py`.
"""

import logging
import resource
from dataclasses import dataclass
from datetime import timedelta

import torch

from pipeline.callbacks.board import Board
from pipeline.dist import gather_json, max_over_ranks, sum_over_ranks
from pipeline.trainer import StepRecord, Trainer

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class _Sums:
    """Over the steps of one point: what does not depend on how fast they were."""

    steps: int = 0
    loss_share: float = 0.0
    padding: float = 0.0


_NOTHING = _Sums()


class Monitor:
    """Scalars and one terminal line every `log_every` steps.

    A point is the mean over its steps, also where a checkpoint lies between them: their sums go
    with it.
    """

    def __init__(self, board: Board, name: str, *, total_steps: int, log_every: int) -> None:
        self._board, self._name = board, name
        self._total, self._every = total_steps, log_every
        self._window: list[StepRecord] = []
        self._carried = _NOTHING  # of the steps of this point that an earlier start has done

    def on_start(self, trainer: Trainer) -> None:
        """Takes over what `carry` has left; another number of ranks leaves it to the first."""
        unshown, world = trainer.progress.unshown, trainer.world
        if not unshown:
            return
        losses = unshown["loss_shares"]
        if len(losses) != world.size:
            losses = [sum(losses)] + [0.0] * (world.size - 1)
        self._carried = _Sums(int(unshown["steps"][0]), losses[world.rank], unshown["padding"][0])

    def carry(self, trainer: Trainer) -> None:
        """Puts the sums of the steps that are not shown yet into the progress, on every rank."""
        sums = self._sums()
        shares = gather_json(sums.loss_share, trainer.world)
        trainer.progress.unshown = (
            {"steps": [sums.steps], "loss_shares": shares, "padding": [sums.padding]}
            if sums.steps
            else {}
        )

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Collects, and shows at the end of each window."""
        self._window.append(record)
        if record.step % self._every == 0 or trainer.finished:
            self._board.scalars(self._show(trainer), record.step)
            self._window, self._carried = [], _NOTHING

    def on_finish(self, trainer: Trainer) -> None:
        """Nothing: the last step was shown."""

    def on_stop(self, trainer: Trainer) -> None:
        """A line of what an early stop leaves unshown; its point comes when the run goes on."""
        if self._window:
            self._show(trainer)

    def _sums(self) -> "_Sums":
        steps, loss_share, padding = (
            self._carried.steps,
            self._carried.loss_share,
            self._carried.padding,
        )
        for each in self._window:
            steps, padding = steps + 1, padding + each.padding
            loss_share += float(each.loss_share)
        return _Sums(steps, loss_share, padding)

    def _show(self, trainer: Trainer) -> dict[str, float]:
        """One terminal line; returns the point's scalars."""
        window, world, sums = self._window, trainer.world, self._sums()
        elapsed = max(sum(each.seconds for each in window), 1e-9)
        loss = sum_over_ranks([sums.loss_share], world)[0] / sums.steps
        trainer.progress.train_loss = loss
        memory = max_over_ranks(_memory_gib(), world)
        records = sum(each.records for each in window)
        wait = sum(each.data_seconds for each in window)
        last = window[-1]
        skipped = sum(trainer.progress.records_skipped.values())
        scalars = {
            "train/loss": loss,
            "train/grad_norm": last.grad_norm,
            "train/steps_skipped": trainer.progress.steps_skipped,
            "speed/samples_per_second": records / elapsed,
            "speed/target_tokens_per_second": sum(each.targets for each in window) / elapsed,
            "speed/step_seconds": elapsed / len(window),
            "data/wait_fraction": wait / elapsed,
            "data/padding_fraction": sums.padding / sums.steps,
            "data/records_skipped": skipped,
            "data/texts_cut": trainer.progress.texts_cut,
            "data/io_retries": trainer.progress.io_retries,
            "data/worker_restarts": trainer.progress.worker_restarts,
            "memory/process_peak_gib": memory[0],
            "memory/gpu_peak_gib": memory[1],
        }
        scalars |= {f"lr/{name}": value for name, value in last.lrs.items()}
        for name, count in trainer.progress.records_by_set.items():
            scalars[f"data/records/{name}"] = count
        for reason, count in trainer.progress.records_skipped.items():
            scalars[f"data/skipped/{reason.replace(' ', '_')}"] = count
        left = timedelta(seconds=round(elapsed / len(window) * (self._total - last.step)))
        log.info(
            "%-13s step %*d/%d  eta %s  loss %.4f  %6.1f samples/s  %8.0f tokens/s  "
            "data wait %2.0f %%%s%s%s",
            self._name,
            len(str(self._total)),
            last.step,
            self._total,
            left,
            loss,
            records / elapsed,
            scalars["speed/target_tokens_per_second"],
            100 * wait / elapsed,
            _said("skipped", skipped),
            _said("io retries", trainer.progress.io_retries),
            _said("workers restarted", trainer.progress.worker_restarts),
        )
        return scalars


def _said(name: str, count: int) -> str:
    """Counts of what seldom happens are shown once it did."""
    return f"  {name} {count}" if count else ""


def _memory_gib() -> list[float]:
    """Peak resident memory of this process, and peak memory of its GPU, in GiB."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return [resident / 2**30, gpu / 2**30]
