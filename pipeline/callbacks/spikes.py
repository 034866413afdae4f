"""Marks losses that stand out: a point in TensorBoard, a line with the samples, nothing else.

A step is a spike when its loss is `threshold` standard deviations above the mean of the window of
steps before it. The window is part of the progress, so that a resumed run marks the same steps.
"""

import logging
import math
import statistics
from collections.abc import Sequence

from pipeline.callbacks.board import Board
from pipeline.callbacks.step_lines import StepLines, listed
from pipeline.trainer import StepRecord, Trainer

log = logging.getLogger("pipeline")

LOSS_SPIKES = "loss_spikes.jsonl"

_FEWEST = 20  # losses that make a mean worth comparing with

# Of the mean; a loss that hardly varies would have spikes that nobody could see.
_LEAST_DEVIATION = 0.01


class Spikes:
    """Compares each step's loss with those before it."""

    def __init__(
        self, board: Board, lines: StepLines, name: str, *, window: int, threshold: float
    ) -> None:
        self._board, self._lines, self._name = board, lines, name
        self._window, self._threshold = window, threshold

    def on_start(self, trainer: Trainer) -> None:
        """An earlier start may have written of steps that are done again."""
        self._lines.start(trainer.progress.step)

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """The loss is the same on all ranks, so all of them find a spike or none does."""
        if not self._window or not math.isfinite(record.loss):
            return
        recent = trainer.progress.recent_losses
        enough = len(recent) >= min(_FEWEST, self._window)
        score = deviation(record.loss, recent) if enough else 0.0
        if score > self._threshold:
            self._mark(record, score, len(recent))
        trainer.progress.recent_losses = [*recent, record.loss][-self._window :]

    def on_finish(self, trainer: Trainer) -> None:
        """Another segment has other losses."""
        trainer.progress.recent_losses = []

    def on_stop(self, trainer: Trainer) -> None:
        """Nothing: each line was written at once."""

    def _mark(self, record: StepRecord, score: float, steps: int) -> None:
        keys = self._lines.add(record, loss=record.loss, deviations=round(score, 2))
        self._board.scalars({"train/loss_spike": score}, record.step)
        self._board.text("loss_spikes", f"step {record.step}: {listed(keys)}", record.step)
        log.warning(
            "%-13s step %d: the loss %.4f is %.1f standard deviations above the %d before it; "
            "its samples: %s",
            self._name,
            record.step,
            record.loss,
            score,
            steps,
            listed(keys),
        )


def deviation(loss: float, recent: Sequence[float]) -> float:
    """Standard deviations of `loss` above the mean of the losses before it, at least one."""
    mean = statistics.fmean(recent)
    return (loss - mean) / max(statistics.pstdev(recent, mean), _LEAST_DEVIATION * abs(mean), 1e-12)
