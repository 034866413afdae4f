"""Saves a checkpoint every N steps, and wherever training stops before its end."""

import logging
from collections.abc import Callable
from pathlib import Path

from pipeline.checkpoint import save_checkpoint
from pipeline.identity import Identity
from pipeline.trainer import StepRecord, Trainer

log = logging.getLogger("pipeline")


class Checkpointer:
    """Knows where checkpoints go and which recipe they belong to."""

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        *,
        every: int,
        keep: int,
        before_save: Callable[[Trainer], None],
    ) -> None:
        """before_save: on every rank; puts what a resumed run must know into its progress."""
        self._before_save = before_save
        self._folder, self._identity = folder, identity
        self._every, self._keep = every, keep
        self._saved_at = -1

    def on_start(self, trainer: Trainer) -> None:
        """What was resumed from need not be written again."""
        self._saved_at = trainer.progress.step

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Saves at multiples of the interval."""
        if record.step % self._every == 0 and not trainer.finished:
            self._save(trainer)

    def on_stop(self, trainer: Trainer) -> None:
        """Saves where an early stop has left the run."""
        if not trainer.finished and trainer.progress.step != self._saved_at:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._before_save(trainer)
        path = save_checkpoint(
            self._folder, trainer.engine, trainer.progress, self._identity, keep=self._keep
        )
        self._saved_at = trainer.progress.step
        log.info("checkpoint   %s", path)
