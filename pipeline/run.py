"""Runs one phase of a recipe from wherever it is to its export: skip, resume, or start.

The order of things lives here: check, take over the predecessor's export, train segment by segment,
export, summarise. What a phase *is* stands in `phases.py`, how a step works in `trainer.py`.
"""

import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from pipeline import checkpoint as ckpt
from pipeline.assemble import check_adapters, recipe_identity
from pipeline.callbacks.stop_after import stop_after_reached
from pipeline.config import Config, EncoderAdaptConfig, LLMTuneConfig, PhaseConfig
from pipeline.dist import World, from_main, on_main, wait_for_all
from pipeline.errors import CheckpointError, ConfigError
from pipeline.export_files import ExportTensors, read_export
from pipeline.hashes import fingerprint_of
from pipeline.phases import as_baseline, predecessor, segments
from pipeline.progress import Progress
from pipeline.recipe import save_recipe
from pipeline.segment import SegmentRun
from pipeline.splits import open_training
from pipeline.stopping import STOP_FILE, stop_if_asked
from pipeline.summary import noting_a_stop, summarise

log = logging.getLogger("pipeline")

# Keys of a phase that change how fast or how closely watched it runs, not what it learns.
_HARMLESS = {
    "enabled",
    "ds_config",
    "init_from",
    "micro_batch",
    "activation_checkpointing",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "eval_every",
    "val_records",
    "sample_images",
    "stop_after",
    "max_skipped_steps",
    "spike_window",
    "spike_threshold",
    "caption_records",
}


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
    fingerprint = fingerprint_of_phase(config, name, world)
    folder = Path(config.runs) / config.name / name
    if world.is_main:
        world.presence.obey(folder.parent / STOP_FILE)
    stop_if_asked(world)
    if _already_done(config, name, folder, fingerprint, world):
        log.info("%-13s is finished already: %s", name, folder / "export")
        return True
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        save_recipe(config, folder.parent / "config.yaml")
        save_recipe(config, folder / "config.yaml")
    wait_for_all(world)
    plan_steps = math.ceil(split.records / phase.global_batch)
    stretches = segments(config, name, plan_steps)
    tensors: Mapping[str, Tensor] = {} if start is None else ExportTensors(start)
    progress = Progress()
    budget = phase.stop_after  # steps left to this start
    for segment in stretches:
        target = folder / ("export" if segment is stretches[-1] else f"segment-{segment.index}")
        done = from_main(read_export(target), world)
        if done is not None and done["fingerprint"] == fingerprint:
            progress, tensors = Progress(**done["progress"]), ExportTensors(target)
            continue
        progress.updates = 0
        runner = SegmentRun(config, name, segment, stretches[-1].stop, folder, fingerprint, world)
        with noting_a_stop(folder, name, progress, world):
            stop_if_asked(world)
            done, progress, tensors = runner.train(tensors, progress, target, budget)
        budget = None if budget is None else budget - runner.steps
        reason = runner.stop_reason
        if done and segment is not stretches[-1] and budget == 0:
            reason = stop_after_reached(phase.stop_after or 0)
        if reason is not None or segment is stretches[-1]:
            summarise(folder, name, progress, reason, runner, world)
        if reason is not None:
            return False
    return True


def finished_export(
    config: Config, phase: str, world: World, *, wording: tuple[str, str], remember: bool = True
) -> Path:
    """The export of a phase, which must be finished and of this recipe. Every rank calls it.

    config: the effective one. wording: of the messages; who needs the export ("llm_tune starts
    from"), and the key that names another one. remember: see `fingerprint_of_phase`.
    """
    needs, key = wording
    export = export_folder(config, phase)
    found = from_main(read_export(export), world)
    if found is None:
        raise ConfigError(
            f"{needs} {phase}, which is not finished ({export} is missing); run stages/{phase}.py "
            f"first, or set {phase}.enabled=false, or name an export with {key}="
        )
    if found["fingerprint"] != fingerprint_of_phase(config, phase, world, remember=remember):
        raise CheckpointError(
            f"{needs} {export}, which was made by another recipe, other data or other weights; "
            f"give the arguments that made it, or run stages/{phase}.py with overwrite=true, or "
            f"take it as it is with {key}={export}"
        )
    return export


def fingerprint_of_phase(config: Config, name: str, world: World, *, remember: bool = True) -> str:
    """A hash of all that a phase's result depends on, its predecessors' recipes included.

    Every rank calls it; rank 0 reads the weights' hashes, and writes down new ones where
    `remember` is true. config: the effective one.
    """
    phase: PhaseConfig = getattr(config, name)
    before: str | None = None
    previous = predecessor(config, name)
    if phase.init_from is not None:
        found = read_export(Path(phase.init_from))
        before = None if found is None else found["fingerprint"]
    elif previous is not None:
        before = fingerprint_of_phase(config, previous, world, remember=remember)
    language = not isinstance(phase, EncoderAdaptConfig)
    identity: dict[str, object] = {}
    if world.is_main:
        cache = Path(config.runs) / ".hashes.json"
        identity = recipe_identity(config, cache, language=language, remember=remember)
    identity = from_main(identity, world)
    if isinstance(phase, LLMTuneConfig):
        identity["lora"] = asdict(config.llm.lora)  # elsewhere adapters are fresh or the start's
    shards = open_training(config).fingerprint
    return fingerprint_of(identity, learnt_values(phase), shards, before)


def learnt_values(phase: PhaseConfig) -> dict[str, object]:
    """The keys of a phase that decide what it learns."""
    return {key: value for key, value in asdict(phase).items() if key not in _HARMLESS}


def start_of(config: Config, name: str, world: World, *, remember: bool = True) -> Path | None:
    """The export that the phase starts from; None for the base weights.

    Every rank calls it. Raises UserError where the predecessor is not finished, or of another
    recipe. remember: see `fingerprint_of_phase`.
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


def what_lies_in(folder: Path, fingerprint: str, config: Config, ranks: int) -> tuple[bool, bool]:
    """(finished, outdated): whether a phase's folder holds its export, or something of others."""
    found = read_export(folder / "export")
    if found is not None:
        done = found["fingerprint"] == fingerprint
        return done, not done
    halfway = [read_export(each) for each in folder.glob("segment-*")]
    outdated = any(each is not None and each["fingerprint"] != fingerprint for each in halfway)
    return False, outdated or ckpt.holds_other_checkpoints(
        folder / "checkpoints", fingerprint, ranks if config.overwrite else None
    )


def refuse_outdated(folder: Path, config: Config) -> None:
    """Raises CheckpointError unless the recipe allows what lies there to be overwritten."""
    if not config.overwrite:
        raise CheckpointError(
            f"{folder} was made by another recipe, other data or another predecessor; give another "
            "name=, or overwrite=true to make it again"
        )


def _already_done(config: Config, name: str, folder: Path, fingerprint: str, world: World) -> bool:
    """True when the export is of this recipe; clears an outdated one where that is allowed."""
    done, outdated = from_main(list(what_lies_in(folder, fingerprint, config, world.size)), world)
    if done:
        return True
    if not outdated:
        return False
    refuse_outdated(folder, config)
    if world.is_main:
        log.info("%-13s is started again: %s is removed (overwrite=true)", name, folder)
        shutil.rmtree(folder)
    wait_for_all(world)
    return False
