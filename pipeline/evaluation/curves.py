"""The curves of a run's phases, read back from the event files that its boards have written.

What a killed run wrote after its last checkpoint is hidden, as in TensorBoard.
"""

from collections.abc import Mapping
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.callbacks.board import FOLDER
from pipeline.config import PHASES

Curve = list[tuple[float, float]]  # (step, value), ascending
Curves = Mapping[str, Curve]  # by what a phase calls it: "train/loss", "val/cider"


def read_curves(run: Path) -> dict[str, Curves]:
    """Phase -> its curves of loss and validation, of the phases that have any."""
    found = {phase: _curves(run / phase / FOLDER, phase) for phase in PHASES}
    return {phase: curves for phase, curves in found.items() if curves}


def _curves(folder: Path, phase: str) -> Curves:
    if not folder.is_dir():
        return {}
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    wanted = (f"{phase}/train/loss", f"{phase}/val/")
    return {
        tag.removeprefix(f"{phase}/"): [(float(e.step), e.value) for e in board.Scalars(tag)]
        for tag in board.Tags()["scalars"]
        if tag.startswith(wanted)
    }
