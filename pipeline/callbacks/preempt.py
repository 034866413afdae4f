"""Stops a run in good order: on a signal, or after a given number of steps.

A signal may reach one rank alone, so the wish to stop is agreed by all ranks after each step; the
checkpoint callback then writes the checkpoint.
"""

import signal
from types import FrameType
from typing import Any

from pipeline.dist import agree_any
from pipeline.trainer import StepRecord, Trainer

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Preempt:
    """Watches signals and `stop_after`; a second signal ends the process as it would have."""

    def __init__(self, *, stop_after: int | None) -> None:
        self._stop_after = stop_after
        self._steps = 0
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def on_start(self, trainer: Trainer) -> None:
        """Takes over the signals."""
        self._before = {each: signal.signal(each, self._remember) for each in _SIGNALS}

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Asks for a stop once any rank wants one."""
        self._steps += 1
        if self._stop_after is not None and self._steps >= self._stop_after:
            trainer.stop_reason = f"stop_after={self._stop_after}"
        if agree_any(self._received is not None, trainer.world):
            trainer.stop_reason = "signal"

    def on_stop(self, trainer: Trainer) -> None:
        """Gives the signals back; one that came after the last step counts too."""
        if agree_any(self._received is not None, trainer.world):
            trainer.stop_reason = "signal"
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
