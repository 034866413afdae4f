"""After a segment's last step: the module becomes what the export will be.

Comes before validation in the list of callbacks, so that the last validation measures the export
(an average over steps, a blend with the original) and not the last step's weights.
"""

import logging

from pipeline.averages import Blend
from pipeline.config import EncoderAdaptConfig, PhaseConfig
from pipeline.trainer import StepRecord, Trainer

log = logging.getLogger("pipeline")


class Settle:
    """Does nothing where the export is the weights of the last step."""

    def __init__(self, name: str, phase: PhaseConfig, blend: Blend) -> None:
        self._name, self._phase, self._blend = name, phase, blend

    def on_start(self, trainer: Trainer) -> None:
        """Nothing: training starts from what it took over."""

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Nothing: training goes on from the last step's weights."""

    def on_finish(self, trainer: Trainer) -> None:
        """Training could not go on from here."""
        if settles(self._phase):
            trainer.engine.settle(self._blend)
            log.info("%-13s exports, and now validates, %s", self._name, exported(self._phase))

    def on_stop(self, trainer: Trainer) -> None:
        """Nothing: an early stop leaves the training weights to its checkpoint."""


def settles(phase: PhaseConfig) -> bool:
    """True where the export is not the weights of the last step."""
    return bool(phase.ema) or (isinstance(phase, EncoderAdaptConfig) and phase.merge_alpha < 1)


def exported(phase: PhaseConfig) -> str:
    """Which weights a phase exports, in words."""
    words = (
        f"the average over steps (ema={phase.ema:g})" if phase.ema else "the last step's weights"
    )
    if isinstance(phase, EncoderAdaptConfig) and phase.merge_alpha < 1:
        words += f", blended with the original (merge_alpha={phase.merge_alpha:g})"
    return words
