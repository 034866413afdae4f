"""When checkpoints are written: every N steps, on request, and wherever training stops early.

Also tells how each one went, and ends the run when too many in a row could not be written. How they
are written is in `saving.py`.
"""

import logging
import time
from collections.abc import Callable

from pipeline.callbacks.board import Board
from pipeline.callbacks.requests import RequestFile
from pipeline.dist import sum_over_ranks
from pipeline.errors import CheckpointError
from pipeline.saving import Saved, Saver, megabytes
from pipeline.trainer import StepRecord, Trainer

log = logging.getLogger("pipeline")


class Checkpointer:
    """One small agreement a step: whether a checkpoint was asked for, and whether one is ready."""

    def __init__(
        self,
        saver: Saver,
        board: Board,
        request: RequestFile,
        *,
        every: int,
        attempts: int,
        before_save: Callable[[Trainer], None],
        settles: bool = False,
    ) -> None:
        """every: steps. attempts: failures in a row that end the run. before_save: puts what a
        resumed run must know into its progress; every rank calls it. settles: the last step's
        weights are changed for the export, so they are saved before.
        """
        self._saver, self._board, self._request = saver, board, request
        self._every, self._attempts, self._before_save = every, attempts, before_save
        self._settles = settles
        self._saved_at = -1  # the step whose checkpoint is complete or under way
        self._failed = 0  # in a row
        self._asked = False  # by a file, for the one under way
        self._stalled = 0.0  # seconds that training stood still for the one under way

    def on_start(self, trainer: Trainer) -> None:
        """What was resumed from need not be written again."""
        self._saved_at = trainer.progress.step

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Saves at multiples of the interval and on request; sees to the one under way."""
        wanted = self._request.seen() and not self._asked
        asked, busy = sum_over_ranks([wanted, self._saver.busy], trainer.world)
        if not busy:
            self._tell(self._saver.advance(), trainer)
        due = self._settles if trainer.finished else record.step % self._every == 0
        if due or (asked and not trainer.finished):
            self._save(trainer, asked=bool(asked))

    def on_finish(self, trainer: Trainer) -> None:
        """Nothing: the export is what stays of a finished segment."""

    def on_stop(self, trainer: Trainer) -> None:
        """Waits for the one under way, and saves where an early stop has left the run.

        What could not be written is tried once more, and else belongs to the reason of the stop.
        """
        self._wait(trainer)
        for _ in range(2):
            if trainer.done or trainer.progress.step == self._saved_at:
                return
            self._save(trainer)
            self._wait(trainer)
        if trainer.progress.step != self._saved_at:
            trainer.stop_reason = (
                f"{trainer.stop_reason}; the checkpoint of step {trainer.progress.step} could not "
                "be written, so the next start goes on from an older one"
            )

    def _save(self, trainer: Trainer, *, asked: bool = False) -> None:
        self._wait(trainer)  # at most one is under way
        began = time.perf_counter()
        self._before_save(trainer)
        self._saved_at, self._asked = trainer.progress.step, asked
        failed = self._saver.begin(trainer.progress)
        self._stalled = time.perf_counter() - began
        self._tell(failed, trainer)

    def _wait(self, trainer: Trainer) -> None:
        began = time.perf_counter()
        ended = self._saver.finish()
        self._stalled += time.perf_counter() - began
        self._tell(ended, trainer)

    def _tell(self, ended: Saved | None, trainer: Trainer) -> None:
        """Logs how a checkpoint went; CheckpointError on all ranks after too many failures."""
        if ended is None:
            return
        if self._asked:
            self._request.done()
            self._asked = False
        if ended.failure is None:
            self._failed = 0
            self._show(ended)
            return
        self._failed += 1
        self._saved_at = -1
        log.warning(
            "checkpoint    of step %d could not be written (%d of %d in a row that end the run), "
            "the older ones stay: %s",
            ended.step,
            self._failed,
            self._attempts,
            ended.failure,
        )
        if self._failed >= self._attempts and not trainer.finished:
            raise CheckpointError(
                f"checkpoints.attempts={self._attempts}: so many checkpoints in a row could not be "
                f"written, the last at step {ended.step}: {ended.failure}; make room or mend the "
                "rights, then the same command goes on from the newest complete checkpoint"
            )

    def _show(self, saved: Saved) -> None:
        log.info(
            "checkpoint    %s (%s): training stood still for %.2f s, complete after %.2f s",
            saved.path,
            megabytes(saved.bytes),
            self._stalled,
            saved.seconds,
        )
        scalars = {
            "checkpoint/stalled_seconds": self._stalled,
            "checkpoint/complete_seconds": saved.seconds,
            "checkpoint/bytes": saved.bytes,
        }
        self._board.scalars({name: float(each) for name, each in scalars.items()}, saved.step)
