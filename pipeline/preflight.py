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
from pipeline.durable import existing
from pipeline.engine import check_precision, resolve_precision
from pipeline.errors import CheckpointError, ConfigError, DataError, UserError
from pipeline.evaluation.captions import check_metrics
from pipeline.explain.budget import disk_free, disk_needed, phase_disk
from pipeline.explain.data import training_outlook
from pipeline.explain.phase import export_size, plan_phase
from pipeline.explain.sketches import sketch_language_model
from pipeline.explain.text import size
from pipeline.export_files import ExportTensors
from pipeline.exports import DETAILS, WEIGHTS, is_export
from pipeline.models.encoder_sketch import HUB, check_encoder, sketch_clip
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
from pipeline.models.quantize import NONE, check_quantization
from pipeline.models.st import build_st
from pipeline.phases import encoder_groups, phases_before, segments
from pipeline.splits import Split, open_split, open_training
from pipeline.talks import MME, TALKS, template_of
from pipeline.tasks import QUESTIONS, check_answering, question_format, scored

Check = Callable[[Config, World, str], None]


def check_scores(config: Config) -> None:
    """Metrics that are known, with Java where they need it; a way to answer questions."""
    asked = scored(config)
    check_answering(asked)
    if asked.data.task in (QUESTIONS, MME):
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
    evaluates = until == "evaluate"
    # Where an export is scored, nothing is trained.
    if not (evaluates and config.evaluate.export):
        if not config.data.mix:
            _check_name(config, "data.train_split", config.data.train_split)
        _check_records("data.train_split", config.data.train_split, open_training(config))
        _check_split(config, "data.val_split", config.data.val_split)
    if evaluates:
        _check_split(scored(config), "evaluate.split", config.evaluate.split)


def _check_split(config: Config, key: str, name: str) -> None:
    _check_name(config, key, name)
    _check_records(key, name, open_split(config, name))


def _check_records(key: str, name: str, split: Split) -> None:
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
    """An image tower that open_clip knows, and its weights; none where no image is seen."""
    if family(config.family).sees_images(config):
        check_encoder(config.encoder)


def _blocks(config: Config, world: World, until: str) -> None:
    """The encoder has the blocks that shall train."""
    sees = family(config.family).sees_images(config)
    if sees and config.encoder_adapt.enabled and not config.encoder.arch.startswith(HUB):
        clip = sketch_clip(config.encoder).model
        add_tower_adapters(config, clip, Blueprint())
        encoder_groups(clip, config.encoder_adapt)


def _parts(config: Config, world: World, until: str) -> None:
    """A model that sees no images has no tower to adapt and no ST to align."""
    scored = until == "evaluate" and config.evaluate.export is not None
    if scored or family(config.family).sees_images(config):
        return
    for name, part in zip(PHASES, ("image tower to adapt", "ST to align"), strict=False):
        if getattr(config, name).enabled:
            raise ConfigError(
                f"{name}.enabled=true: this model sees no images (llama_adapter.sees_images=false) "
                f"and has no {part}; set it to false"
            )


def _language_model(config: Config, world: World, until: str) -> None:
    """A causal language model with its weights and its own tokenizer."""
    llm = load_llm_config(config.llm)
    check_weights(config.llm)
    tokenizer = load_tokenizer(config.llm)
    check_vocabulary(config.llm, llm, tokenizer)
    end_ids(tokenizer, config.evaluate.stop)
    if not TALKS.isdisjoint({config.data.task, config.evaluate.task}):
        template_of(config, tokenizer)


def _quantized(config: Config, world: World, until: str) -> None:
    """Weights can be held in few bits here, and nothing trains them."""
    quantize = config.llm.quantize
    if quantize == NONE:
        return
    check_quantization(config.llm)
    for name, _ in _enabled(config):
        trained = (part for each in segments(config, name, 1) for part in each.train)
        if "llm" in trained and not config.llm.lora.rank:
            raise ConfigError(
                f"llm.quantize={quantize}: {name} trains llm, but weights in few bits cannot "
                "train; train adapters on them (llm.lora.rank=8), leave llm out of "
                f"{name}.segments, or set llm.quantize=none"
            )


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
    (frozenset(), _parts),
    (frozenset({"clip"}), _encoder),
    (frozenset({"llm"}), _language_model),
    (frozenset(), _quantized),
    (frozenset(), _blocks),
    (frozenset(), _sizes),
    (frozenset(), _exports),
    (frozenset(), _disk),
)
