"""Validates before the first step, every N steps and at the end, and remembers start and end.

What is measured is a function of the trainer that the phase hands in; images with captions go to
TensorBoard beside the numbers.
"""

import logging
from collections.abc import Callable

import torch
from PIL import Image

from pipeline.callbacks.board import Board
from pipeline.trainer import StepRecord, Trainer

log = logging.getLogger("pipeline")


class Evaluator:
    """Calls `measure` (metrics) and `show` (a picture for TensorBoard, or None) on all ranks."""

    def __init__(
        self,
        board: Board,
        name: str,
        *,
        every: int,
        measure: Callable[[], dict[str, float]],
        show: Callable[[], Image.Image | None],
    ) -> None:
        self._board, self._name, self._every = board, name, every
        self._measure, self._show = measure, show

    def on_start(self, trainer: Trainer) -> None:
        """The phase's starting point, once; and a validation that was broken off by a stop."""
        if "start" not in trainer.progress.validation:
            trainer.progress.validation["start"] = self._validate(trainer)
        elif trainer.progress.validation_due and not trainer.finished:
            self._validate_step(trainer)

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """At multiples of the interval."""
        if record.step % self._every == 0 and not trainer.finished:
            self._validate_step(trainer)

    def on_finish(self, trainer: Trainer) -> None:
        """What the export is worth."""
        self._validate_step(trainer)

    def on_stop(self, trainer: Trainer) -> None:
        """Nothing: the last step was validated, an early stop goes on later."""

    def _validate_step(self, trainer: Trainer) -> None:
        trainer.progress.validation_due = True
        trainer.progress.validation["end"] = self._validate(trainer)
        trainer.progress.validation_due = False
        trainer.progress.validated_at = trainer.progress.step

    def _validate(self, trainer: Trainer) -> dict[str, float]:
        trainer.engine.train(False)
        # Generation may draw random numbers; training must not notice that it was watched.
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            metrics = self._measure()
            picture = self._show()
        trainer.engine.train()
        step = trainer.progress.step
        self._board.scalars({f"val/{name}": value for name, value in metrics.items()}, step)
        if picture is not None:
            self._board.image("val/samples", picture, step)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        log.info("%-13s validation at step %d: %s", self._name, step, shown)
        return metrics
