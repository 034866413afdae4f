"""Where a phase stands on disk: finished, to be resumed, to be started, or refused and why.

Asks the functions that the run itself asks, with one rank and without writing, so that a plan and
the run that follows it agree.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline import ds_config as ds
from pipeline.checkpoint import newest_checkpoint, refuse_beyond
from pipeline.checkpoint_state import read_state
from pipeline.config import Config, PhaseConfig
from pipeline.dist import World
from pipeline.engine import layout_of
from pipeline.errors import ConfigError, UserError
from pipeline.export_files import read_export
from pipeline.identity import told
from pipeline.phases import Segment, predecessor
from pipeline.provenance import identity_of_phase
from pipeline.resume import check_checkpoint
from pipeline.run import (
    refuse_outdated,
    start_of,
    what_lies_in,
)

ALONE = World(0, 1, 0, 1, torch.device("cpu"))  # asks the disk, agrees with nobody

FINISHED, STARTS, RESUMES, REFUSED, OFF = "finished", "starts", "resumes", "refused", "off"


@dataclass(frozen=True)
class Standing:
    """What the stage would do with one phase, and why."""

    state: str
    detail: str

    def __str__(self) -> str:
        return f"{self.state}: {self.detail}" if self.detail else self.state


def standing(
    config: Config, name: str, segments: tuple[Segment, ...], *, precision: str, ranks: int
) -> Standing:
    """Where a phase of the (effective) recipe stands; never raises for what the user can mend."""
    phase: PhaseConfig = getattr(config, name)
    if not phase.enabled:
        return Standing(OFF, f"{name}.enabled=false")
    try:
        return _standing(config, name, phase, segments, precision=precision, ranks=ranks)
    except UserError as error:
        return Standing(REFUSED, str(error))


def _standing(
    config: Config,
    name: str,
    phase: PhaseConfig,
    segments: tuple[Segment, ...],
    *,
    precision: str,
    ranks: int,
) -> Standing:
    folder = Path(config.runs) / config.name / name
    origin = _origin(config, name, phase)
    traces = ("export", "segment-*", "checkpoints/step-*")
    if not any(any(folder.glob(each)) for each in traces):
        return Standing(STARTS, origin)
    identity = identity_of_phase(config, name, ALONE, remember=False)
    allowed = config.resume_with_changes
    done, different = what_lies_in(folder, identity, with_changes=allowed)
    if done:
        return Standing(FINISHED, f"{folder / 'export'} is of this recipe and is left alone")
    if different:
        refuse_outdated(folder, config, different)
        return Standing(STARTS, f"again; {folder} would be removed first (overwrite=true)")
    step, source = _position(folder, segments)
    if source is None:
        refuse_beyond(folder / "checkpoints", segments[-1].stop)
        return Standing(STARTS, origin)
    if source.name.startswith("step-"):
        layout = layout_of(ds.read_ds_config(name, phase.ds_config), precision)
        progress = check_checkpoint(source, identity, layout, with_changes=allowed)
        written_by = read_state(source)["ranks"]
        again = f", rewritten from {written_by} to {ranks} rank(s)" if written_by != ranks else ""
        changed = f"; changed: {told(progress.changes)}" if progress.changes else ""
        return Standing(RESUMES, f"at step {step:,} from {source}{again}{changed}")
    return Standing(RESUMES, f"at step {step:,} from {source}")


def _origin(config: Config, name: str, phase: PhaseConfig) -> str:
    """What the phase takes over; ConfigError where that is neither there nor made before."""
    before = predecessor(config, name)
    if phase.init_from is not None:
        if read_export(Path(phase.init_from)) is None:
            raise ConfigError(f"{name}.init_from={phase.init_from} is not a finished export")
        return f"from {phase.init_from}"
    if before is None:
        return "from the base weights"
    if not config.make_missing:
        start_of(config, name, ALONE, remember=False)
    return f"from {before}"


def _position(folder: Path, segments: tuple[Segment, ...]) -> tuple[int, Path | None]:
    """The step that the phase goes on from, and the folder that it is read from."""
    step, source = 0, None
    for segment in segments:
        newest = newest_checkpoint(folder / "checkpoints", segment.start, segment.stop)
        if newest is not None:
            step, source = int(newest.name.removeprefix("step-")), newest
        if read_export(folder / f"segment-{segment.index}") is not None:
            step, source = segment.stop, folder / f"segment-{segment.index}"
    return step, source
