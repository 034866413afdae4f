"""Runs one phase of a recipe from wherever it is to its export: skip, resume, or start.

The order of things lives here: check, take over the predecessor's export, train segment by segment,
export, summarise. What a phase *is* stands in `phases.py`, how a step works in `trainer.py`.
"""

import logging
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.assemble import check_adapters
from pipeline.callbacks.board import show_results
from pipeline.callbacks.stop_after import stop_after_reached
from pipeline.checkpoint import newest_checkpoint
from pipeline.checkpoint_state import identity_in, read_state
from pipeline.config import Config, PhaseConfig
from pipeline.dist import World, from_main, on_main, wait_for_all
from pipeline.durable import write_json
from pipeline.errors import CheckpointError, ConfigError
from pipeline.export_files import ExportTensors, check_weights, read_export
from pipeline.exports import DETAILS, is_export
from pipeline.identity import Identity, differences, told
from pipeline.phases import as_baseline, predecessor, segments
from pipeline.progress import Progress
from pipeline.provenance import identity_of_phase
from pipeline.recipe import save_recipe
from pipeline.recipe_values import unusual
from pipeline.segment import SegmentRun
from pipeline.splits import open_training
from pipeline.stopping import STOP_FILE, stop_if_asked
from pipeline.summary import complete_summary, noting_a_stop, summarise

log = logging.getLogger("pipeline")


def effective(config: Config) -> Config:
    """The recipe that is really run: its baseline where `baseline` is true."""
    if not config.baseline:
        return config
    return as_baseline(config, open_training(config).records)


def export_folder(config: Config, phase: str) -> Path:
    """Where a phase leaves its export."""
    return Path(config.runs) / config.name / phase / "export"


def run_phase(config: Config, name: str, world: World) -> bool:
    """Brings one phase to its export. Every rank calls it.

    Returns True when the export is there and what follows may start, False when the run was stopped
    (the same command goes on). Raises UserError for what the user can mend.
    """
    config = effective(config)
    phase: PhaseConfig = getattr(config, name)
    if not phase.enabled:
        log.info("%-13s is off in this recipe (%s.enabled=false)", name, name)
        return True
    split = open_training(config)
    start = start_of(config, name, world)
    identity = identity_of_phase(config, name, world)
    folder = Path(config.runs) / config.name / name
    if world.is_main:
        world.presence.obey(folder.parent / STOP_FILE)
    stop_if_asked(world)
    if _already_done(config, name, folder, identity, world):
        complete_summary(folder, phase, world)
        log.info("%-13s is finished already: %s", name, folder / "export")
        return True
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        save_recipe(config, folder.parent / "config.yaml")
        save_recipe(config, folder / "config.yaml")
    wait_for_all(world)
    plan_steps = math.ceil(split.records / phase.global_batch)
    stretches = segments(config, name, plan_steps)
    tensors: Mapping[str, Tensor] = {}
    if start is not None:
        on_main(partial(check_weights, start), world)
        tensors = ExportTensors(start)
    progress = Progress()
    budget = phase.stop_after  # steps left to this start
    for segment in stretches:
        target = folder / ("export" if segment is stretches[-1] else f"segment-{segment.index}")
        kept = on_main(partial(_finished_segment, target, identity), world)
        if kept is not None:
            progress, tensors = Progress(**kept), ExportTensors(target)
            continue
        progress.updates = 0
        runner = SegmentRun(config, name, segment, stretches[-1].stop, folder, identity, world)
        with noting_a_stop(folder, name, progress, world):
            stop_if_asked(world)
            done, progress, tensors = runner.train(tensors, progress, target, budget)
        budget = None if budget is None else budget - runner.steps
        reason = runner.stop_reason
        if done and segment is not stretches[-1] and budget == 0:
            reason = stop_after_reached(phase.stop_after or 0)
        if reason is not None or segment is stretches[-1]:
            summarise(folder, phase, progress, reason, runner.ran, world)
        if reason is not None:
            return False
    if world.is_main:
        show_results(folder.parent, name, unusual(config), progress.validation.get("end", {}))
    return True


def finished_export(
    config: Config, phase: str, world: World, *, wording: tuple[str, str], remember: bool = True
) -> Path:
    """The export of a phase, which must be finished and of this recipe. Every rank calls it.

    config: the effective one. wording: of the messages; who needs the export ("llm_tune starts
    from"), and the key that names another one. remember: see `identity_of_phase`.
    """
    needs, key = wording
    export = export_folder(config, phase)
    found = from_main(read_export(export), world)
    if found is None:
        raise ConfigError(
            f"{needs} {phase}, which is not finished ({export} is missing); run stages/{phase}.py "
            f"first, or set {phase}.enabled=false, or name an export with {key}="
        )
    now = identity_of_phase(config, phase, world, remember=remember)
    different = differences(identity_in(found), now)
    if different:
        raise CheckpointError(
            f"{needs} {export}, which was made with other values: {told(different)}; give the "
            f"arguments that made it, or run stages/{phase}.py with overwrite=true, or take it as "
            f"it is with {key}={export}"
        )
    return export


def start_of(config: Config, name: str, world: World, *, remember: bool = True) -> Path | None:
    """The export that the phase starts from; None for the base weights.

    Every rank calls it. Raises UserError where the predecessor is not finished, or of another
    recipe. remember: see `identity_of_phase`.
    """
    phase: PhaseConfig = getattr(config, name)
    if phase.init_from is not None:
        start = Path(phase.init_from)
        on_main(lambda: check_adapters(config, start), world)
        return start
    before = predecessor(config, name)
    if before is None:
        return None
    wording = (f"{name} starts from", f"{name}.init_from")
    start = finished_export(config, before, world, wording=wording, remember=remember)
    on_main(lambda: check_adapters(config, start), world)
    return start


def what_lies_in(
    folder: Path, identity: Identity, *, with_changes: bool = False
) -> tuple[bool, list[str]]:
    """Whether a phase's folder holds its export; and else what differs in what it does hold.

    with_changes: what is half-way is gone on from whatever differs; what is finished is not.
    """
    found = read_export(folder / "export")
    if found is not None:
        different = differences(identity_in(found), identity)
        return not different, different
    if with_changes:
        return False, []
    halfway = [read_export(each) for each in sorted(folder.glob("segment-*"))]
    newest = newest_checkpoint(folder / "checkpoints", 0, sys.maxsize)
    states = [*halfway, None if newest is None else read_state(newest)]
    found_different = (differences(identity_in(each), identity) for each in states if each)
    return False, next(filter(None, found_different), [])


def refuse_outdated(folder: Path, config: Config, different: Sequence[str]) -> None:
    """Raises CheckpointError unless the recipe allows what lies there to be overwritten."""
    if config.overwrite:
        return
    goes_on = "" if is_export(folder / "export") else ", resume_with_changes=true to go on from it"
    raise CheckpointError(
        f"{folder} was made with other values: {told(different)}; give another name={goes_on}, or "
        "overwrite=true to make it again"
    )


def _already_done(
    config: Config, name: str, folder: Path, identity: Identity, world: World
) -> bool:
    """True when the export is of this recipe; clears an outdated one where that is allowed."""
    allowed = config.resume_with_changes
    look = partial(what_lies_in, folder, identity, with_changes=allowed)
    done, different = on_main(look, world)
    if done or not different:
        return done
    refuse_outdated(folder, config, different)
    if world.is_main:
        log.info("%-13s is started again: %s is removed (overwrite=true)", name, folder)
        shutil.rmtree(folder)
    wait_for_all(world)
    return False


def _finished_segment(export: Path, identity: Identity) -> dict[str, Any] | None:
    """The progress at the end of a segment that is done; None where it is not.

    One of other values, which is gone on from knowingly, becomes one of ours that says so. Raises
    CheckpointError for one whose weights are damaged.
    """
    found = read_export(export)
    if found is None:
        return None
    check_weights(export)
    progress: dict[str, Any] = found["progress"]
    different = differences(identity_in(found), identity)
    if different:
        changes = [f"step {progress['step']}: {each}" for each in different]
        progress["changes"] = [*progress.get("changes", []), *changes]
        own = {"fingerprint": identity.fingerprint, "identity": identity.as_json()}
        write_json(export / DETAILS, {**found, **own, "progress": progress})
    return progress
