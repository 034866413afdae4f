"""Saves a checkpoint every N steps, and wherever training stops before its end."""

import logging
from pathlib import Path

from pipeline.checkpoint import save_checkpoint
from pipeline.trainer import StepRecord, Trainer

log = logging.getLogger("pipeline")


class Checkpointer:
    """Knows where checkpoints go and which recipe they belong to."""

    def __init__(
        self, folder: Path, fingerprint: str, *, every: int, keep: int, settles: bool = False
    ) -> None:
        """settles: the last step's weights are changed for the export, so they are saved before."""
        self._folder, self._fingerprint = folder, fingerprint
        self._every, self._keep, self._settles = every, keep, settles
        self._saved_at = -1

    def on_start(self, trainer: Trainer) -> None:
        """What was resumed from need not be written again."""
        self._saved_at = trainer.progress.step

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Saves at multiples of the interval."""
        if self._settles if trainer.finished else record.step % self._every == 0:
            self._save(trainer)

    def on_finish(self, trainer: Trainer) -> None:
        """Nothing: the export is what stays of a finished segment."""

    def on_stop(self, trainer: Trainer) -> None:
        """Saves where an early stop has left the run."""
        if not trainer.done and trainer.progress.step != self._saved_at:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        path = save_checkpoint(
            self._folder, trainer.engine, trainer.progress, self._fingerprint, keep=self._keep
        )
        self._saved_at = trainer.progress.step
        log.info("checkpoint   %s", path)
