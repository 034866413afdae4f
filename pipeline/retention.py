"""Which checkpoints stay when a newer one is complete: the last, every K-th, the best.

A pure choice among steps and what was measured at them; removes nothing itself.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.config import EncoderAdaptConfig, LLMTuneConfig, PhaseConfig
from pipeline.errors import ConfigError

LOWER_IS_BETTER = ("loss", "perplexity")


@dataclass(frozen=True)
class Retention:
    """last: how many of the newest stay. every: steps whose multiples stay for good, None for none.

    best: the metric of the validation by which the best one stays, None for none.
    """

    last: int
    every: int | None = None
    best: str | None = None

    def outdated(self, metrics: Mapping[int, float | None]) -> list[int]:
        """The steps that may go.

        metrics: of all complete checkpoints, the one just written included, by step; `best` as it
        was measured at that very step, None where it was not. Of equal ones the older is the best.
        """
        steps = sorted(metrics)
        stay = set(steps[-self.last :])
        if self.every is not None:
            stay |= {step for step in steps if step % self.every == 0}
        best = self._best(metrics)
        return [step for step in steps if step not in stay and step != best]

    def _best(self, metrics: Mapping[int, float | None]) -> int | None:
        sign = -1 if self.best in LOWER_IS_BETTER else 1
        measured = {
            step: sign * value
            for step, value in metrics.items()
            if value is not None and math.isfinite(value)
        }
        return min(measured, key=lambda step: (-measured[step], step), default=None)


def retention_of(phase: PhaseConfig) -> Retention:
    """What a phase's keys ask for."""
    return Retention(phase.keep_checkpoints, phase.keep_every, phase.keep_best)


def check_retention(name: str, phase: PhaseConfig) -> None:
    """Raises ConfigError for what could never be kept: not written, or not measured then."""
    if phase.keep_every is not None and phase.keep_every % phase.checkpoint_every:
        raise ConfigError(
            f"{name}.keep_every={phase.keep_every}: no checkpoint is written at most of its "
            f"multiples; use a multiple of {name}.checkpoint_every={phase.checkpoint_every}"
        )
    if phase.keep_best is None:
        return
    measured = _metrics(phase)
    if phase.keep_best not in measured:
        raise ConfigError(
            f"{name}.keep_best={phase.keep_best}: the phase's validation does not measure it; "
            f"use one of {', '.join(measured)}, or null"
        )
    if phase.checkpoint_every % phase.eval_every:
        raise ConfigError(
            f"{name}.keep_best={phase.keep_best}: {name}.checkpoint_every={phase.checkpoint_every} "
            f"must be a multiple of {name}.eval_every={phase.eval_every}, or checkpoints are kept "
            "that nobody has measured"
        )


def _metrics(phase: PhaseConfig) -> list[str]:
    """What the validation of a phase measures."""
    if isinstance(phase, EncoderAdaptConfig):
        return [f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
    captions = isinstance(phase, LLMTuneConfig) and phase.caption_records
    return [*LOWER_IS_BETTER, *(["cider"] if captions else [])]
