"""Stops a phase, resumable, after a given number of steps of this start (`stop_after`)."""

from pipeline.trainer import StepRecord, Trainer


class StopAfter:
    """Counts the steps of this start."""

    def __init__(self, limit: int | None) -> None:
        """limit: None for no limit."""
        self._limit = limit
        self._steps = 0

    def on_start(self, trainer: Trainer) -> None:
        """Nothing: no step is done yet."""

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Asks for a stop where steps are left to do, but not to this start."""
        self._steps += 1
        if self._limit is not None and self._steps >= self._limit and not trainer.finished:
            trainer.stop_reason = stop_after_reached(self._limit)

    def on_finish(self, trainer: Trainer) -> None:
        """Nothing: the last step is the segment's own."""

    def on_stop(self, trainer: Trainer) -> None:
        """Nothing: the checkpoint is another's work."""


def stop_after_reached(limit: int) -> str:
    """The reason of such a stop, as the summary has it."""
    return f"stop_after={limit}"
