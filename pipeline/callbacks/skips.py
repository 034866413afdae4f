"""Steps that were skipped for want of finite gradients: their samples, and when it is enough.

DeepSpeed makes all ranks skip such a step together, and the schedule does not advance. fp16 skips
some while it finds its loss scale: those are written down, but lead to no stop.
"""

import logging
import math
from collections.abc import Callable
from pathlib import Path

from pipeline.callbacks.step_lines import StepLines, json_number, listed
from pipeline.errors import ConfigError
from pipeline.trainer import StepRecord, Trainer

log = logging.getLogger("pipeline")

SKIPPED_STEPS = "skipped_steps.jsonl"


class Skips:
    """Knows how many steps in a row were skipped."""

    def __init__(
        self, lines: StepLines, name: str, *, most: int, newest: Callable[[], Path | None]
    ) -> None:
        """most: skipped steps in a row that end the run. newest: the last checkpoint."""
        self._lines, self._name, self._most, self._newest = lines, name, most, newest
        self._in_a_row = 0

    def on_start(self, trainer: Trainer) -> None:
        """An earlier start may have written of steps that are done again."""
        self._lines.start(trainer.progress.step)

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Every rank skips the same steps, so every rank raises."""
        if not record.skipped:
            self._in_a_row = 0
            return
        keys = self._lines.add(record, loss=json_number(record.loss))
        what = "loss" if not math.isfinite(record.loss) else "gradient"
        log.warning(
            "%-13s step %d skipped: its %s is not finite; its samples: %s",
            self._name,
            record.step,
            what,
            listed(keys),
        )
        if what == "gradient" and trainer.engine.scales_loss:
            return
        self._in_a_row += 1
        if self._in_a_row >= self._most:
            raise ConfigError(self._too_many(record, keys))

    def on_finish(self, trainer: Trainer) -> None:
        """Nothing: the count is in the summary."""

    def on_stop(self, trainer: Trainer) -> None:
        """Nothing: each line was written at once."""

    def _too_many(self, record: StepRecord, keys: list[str]) -> str:
        newest = self._newest()
        return (
            f"{self._name}.max_skipped_steps={self._most}: gradients were not finite for so many "
            f"steps in a row (learning rate {max(record.lrs.values()):g}), the last at step "
            f"{record.step} with the samples {listed(keys)} (all in {SKIPPED_STEPS}); the last "
            f"good checkpoint is {newest or 'none yet'}; look at the samples, lower lr, raise "
            "warmup_steps, or use precision=bf16 or fp32"
        )
