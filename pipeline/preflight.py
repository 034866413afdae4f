"""All of a recipe is checked before anything is trained or encoded.

Opens configurations, manifests and headers, never weights. `recipe.validate` has checked the values
by themselves; here they meet what lies on disk, each other, and the machine.
"""

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch

from pipeline.assemble import add_tower_adapters, check_overlay, check_parts
from pipeline.captioning import end_ids
from pipeline.config import PHASES, Config, EncoderAdaptConfig, PhaseConfig
from pipeline.data.manifest import MANIFEST_NAME
from pipeline.dist import World, from_main
from pipeline.engine import check_precision, resolve_precision
from pipeline.errors import CheckpointError, ConfigError, DataError, UserError
from pipeline.evaluation.captions import check_metrics
from pipeline.explain.budget import disk_free, disk_needed, existing, phase_disk
from pipeline.explain.data import training_outlook
from pipeline.explain.parts import sketch_language_model
from pipeline.explain.phase import export_size, plan_phase
from pipeline.explain.text import size
from pipeline.export_files import ExportTensors
from pipeline.exports import DETAILS, WEIGHTS, is_export
from pipeline.models.encoder import HUB, check_encoder, sketch_clip
from pipeline.models.families import family
from pipeline.models.llm import (
    check_adapters,
    check_vocabulary,
    check_weights,
    llm_width,
    load_llm_config,
    load_tokenizer,
)
from pipeline.models.placement import Blueprint
from pipeline.models.st import build_st
from pipeline.phases import encoder_groups, phases_before
from pipeline.splits import open_split, open_training
from pipeline.tasks import QUESTIONS, question_format

Check = Callable[[Config, World, str], None]


def check_scores(config: Config) -> None:
    """Unknown metrics, and Java where they need it; answers to questions need neither."""
    if config.data.task == QUESTIONS:
        return
    check_metrics(config.evaluate.metrics)


def check(config: Config, world: World, *, until: str, unmade: Collection[str] = ()) -> None:
    """Raises the first of `problems`, on every rank alike: rank 0 looks, the others are told.

    So only rank 0 asks the hub for configurations; the others find them in the cache.
    """
    found = (
        next(problems(config, world, until=until, unmade=unmade), None) if world.is_main else None
    )
    message = from_main(None if found is None else str(found), world)
    if message is not None:
        raise found or ConfigError(message)


def problems(
    config: Config, world: World, *, until: str, unmade: Collection[str] = ()
) -> Iterator[UserError]:
    """What the user has to mend before stage `until` can run, each as one line with its remedy.

    Args:
        config: the effective recipe.
        world: the ranks that would run it.
        until: a phase, or `evaluate`.
        unmade: of "shards", "clip" and "llm", what the recipe will make first: not looked at here.
    """
    for needs, each in _CHECKS:
        if needs.isdisjoint(unmade):
            try:
                each(config, world, until)
            except UserError as error:
                yield error


def _splits(config: Config, world: World, until: str) -> None:
    """The splits that are read are there, and hold records."""
    named = {"data.train_split": config.data.train_split, "data.val_split": config.data.val_split}
    if until == "evaluate":
        scored = {"evaluate.split": config.evaluate.split}
        # Where an export is scored, nothing is trained.
        named = {**({} if config.evaluate.export else named), **scored}
    for key, name in named.items():
        trains = key == "data.train_split"
        if not (trains and config.data.mix):
            _check_name(config, key, name)
        split = open_training(config) if trains else open_split(config, name)
        if split.records == 0:
            raise DataError(
                f"{key}={name}: {split.place} holds no records; prepare it with some, or name "
                "another split"
            )


def _check_name(config: Config, key: str, name: str) -> None:
    """Where other splits are there, this one is a mistake; remote ones are not listed."""
    folder = Path(config.data.shards)
    there = sorted(each.parent.name for each in folder.glob(f"*/{MANIFEST_NAME}"))
    if config.data.shards and there and name not in there:
        raise DataError(f"{key}={name}: {folder} has no such split; there are {', '.join(there)}")


def _batches(config: Config, world: World, until: str) -> None:
    """A global batch is never more than there is: an epoch would be one short step."""
    if until == "evaluate" and config.evaluate.export:
        return
    records = open_training(config).records
    for name, phase in _enabled(config):
        if 0 < records < phase.global_batch:
            raise ConfigError(
                f"{name}.global_batch={phase.global_batch}: the training split holds {records} "
                f"records, so no batch would be full; set it to {records} or less"
            )


def _encoder(config: Config, world: World, until: str) -> None:
    """An image tower that open_clip knows, and its weights."""
    check_encoder(config.encoder)


def _blocks(config: Config, world: World, until: str) -> None:
    """The encoder has the blocks that shall train."""
    if config.encoder_adapt.enabled and not config.encoder.arch.startswith(HUB):
        clip = sketch_clip(config.encoder).model
        add_tower_adapters(config, clip, Blueprint())
        encoder_groups(clip, config.encoder_adapt)


def _language_model(config: Config, world: World, until: str) -> None:
    """A causal language model with its weights and its own tokenizer."""
    llm = load_llm_config(config.llm)
    check_weights(config.llm)
    tokenizer = load_tokenizer(config.llm)
    check_vocabulary(config.llm, llm, tokenizer)
    end_ids(tokenizer, config.evaluate.stop)


def _sizes(config: Config, world: World, until: str) -> None:
    """Prefix, text and captions fit the context; the ST fits the language model."""
    if config.data.task == QUESTIONS:
        question_format(config)
    llm = load_llm_config(config.llm)
    family(config.family).check(config, llm)
    check_adapters(config.llm, llm)
    with torch.device("meta"):
        build_st(config.st, width=1, llm_width=llm_width(llm))


def _exports(config: Config, world: World, until: str) -> None:
    """What `init_from` names is an export whose tensors have the shapes of this model."""
    for name, phase in _enabled(config):
        if phase.init_from is None:
            continue
        if not is_export(Path(phase.init_from)):
            raise ConfigError(
                f"{name}.init_from={phase.init_from} is not a finished export (a folder with "
                f"{DETAILS} and {WEIGHTS}); name another"
            )
        if config.encoder.arch.startswith(HUB):
            continue  # its sizes are known once it is fetched
        try:
            _check_shapes(config, phase, ExportTensors(Path(phase.init_from)))
        except CheckpointError as error:
            raise ConfigError(f"{name}.init_from={phase.init_from}: {error}") from error


def _check_shapes(config: Config, phase: PhaseConfig, tensors: ExportTensors) -> None:
    if isinstance(phase, EncoderAdaptConfig):
        clip = sketch_clip(config.encoder).model
        add_tower_adapters(config, clip, Blueprint(), tensors)
        for part in ("encoder.", "text."):
            check_overlay(clip, tensors, part, Blueprint())
        return
    encoder, model = sketch_language_model(config, precision="fp32")
    check_parts(model, tensors, Blueprint())
    if encoder is not None:
        check_overlay(encoder, tensors, "encoder.", Blueprint())


def _machine(config: Config, world: World, until: str) -> None:
    """A precision that this device computes in."""
    check_precision(resolve_precision(config.precision, world.device), world.device)


def _folders(config: Config, world: World, until: str) -> None:
    """The run's folder can be written."""
    folder = existing(Path(config.runs))
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        what = "is no folder" if not folder.is_dir() else "cannot be written to"
        raise ConfigError(f"runs={config.runs}: {folder} {what}; name another folder with runs=")


def _disk(config: Config, world: World, until: str) -> None:
    """Checkpoints and exports of what is still to be trained fit on the disk."""
    if until not in PHASES or config.encoder.arch.startswith(HUB):
        return
    precision = resolve_precision(config.precision, world.device)
    train = training_outlook(config)
    plans = [
        plan_phase(config, name, train, precision=precision, ranks=world.size, activations=False)
        for name in [*phases_before(config, until), until]
    ]
    todo = [plan for plan in plans if config.make_missing or plan.name == until]
    needed = 0.0
    for plan in todo:
        if (Path(config.runs) / config.name / plan.name / "export").is_dir():
            continue
        counts = [each.parameters for each in plan.counts]
        one = phase_disk(plan.phase, counts, plan.name, precision, world.size)
        upto = plans[: plans.index(plan) + 1]
        needed += disk_needed(plan.phase, one, export_size(upto))
    free = disk_free(config)
    if needed > free:
        raise ConfigError(
            f"{until}.keep_checkpoints={todo[-1].phase.keep_checkpoints}: checkpoints and exports "
            f"take up to {size(needed)}, but {existing(Path(config.runs))} has {size(free)} free; "
            "free some, keep fewer checkpoints, or name another disk with runs="
        )


def _scores(config: Config, world: World, until: str) -> None:
    """The scores can be computed here."""
    if until == "evaluate":
        check_scores(config)


def _enabled(config: Config) -> Iterator[tuple[str, PhaseConfig]]:
    for name in PHASES:
        phase: PhaseConfig = getattr(config, name)
        if phase.enabled:
            yield name, phase


# In the order in which a user would want to hear of them; what each cannot do without.
_CHECKS: tuple[tuple[frozenset[str], Check], ...] = (
    (frozenset(), _machine),
    (frozenset(), _folders),
    (frozenset(), _scores),
    (frozenset({"shards"}), _splits),
    (frozenset({"shards"}), _batches),
    (frozenset({"clip"}), _encoder),
    (frozenset({"llm"}), _language_model),
    (frozenset(), _blocks),
    (frozenset(), _sizes),
    (frozenset(), _exports),
    (frozenset(), _disk),
)
