"""Builds what one segment trains with: model, engine, objective, data and probe.

The one place that tells the phases apart: `encoder_adapt` trains an image-text model with the
contrastive objective, the others a multimodal LM with the LM objective.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from PIL import Image
from torch import Tensor

from pipeline.assemble import build_caption_model, image_text_model
from pipeline.averages import Blend, Interpolation, as_trained
from pipeline.callbacks.probes import References, RetrievalProbe
from pipeline.config import (
    Config,
    EncoderAdaptConfig,
    LanguagePhaseConfig,
    LLMTuneConfig,
    PhaseConfig,
    STAlignConfig,
)
from pipeline.data.loader import Pass, StepDataset
from pipeline.data.plan import Plan, items_in_order
from pipeline.dist import World
from pipeline.ds_config import read_ds_config
from pipeline.engine import Engine, dtype_of
from pipeline.models.families import family
from pipeline.models.multimodal import MultimodalLM
from pipeline.objectives import (
    ContrastiveObjective,
    ContrastiveTask,
    LanguageObjective,
    LanguageTask,
    Objective,
    Task,
)
from pipeline.phases import (
    Segment,
    as_segment_sees,
    encoder_groups,
    part_groups,
    trains_encoder,
)
from pipeline.probing import Watched
from pipeline.splits import (
    caption_dataset,
    open_split,
    open_training,
    pair_dataset,
    share_of,
)
from pipeline.zero import placement_for


class Probe(Protocol):
    """What the evaluator asks."""

    def measure(self) -> dict[str, float]:
        """Validation metrics, on every rank."""

    def show(self) -> Image.Image | None:
        """A picture, on rank 0."""


@dataclass(frozen=True)
class Setup:
    """Everything that a segment's training loop needs."""

    task: Task
    engine: Engine
    objective: Objective
    dataset: StepDataset
    probe: Probe
    blend: Blend = as_trained  # of what trained, for the export


def set_up(
    config: Config,
    name: str,
    segment: Segment,
    start: Mapping[str, Tensor],
    *,
    precision: str,
    world: World,
) -> Setup:
    """The pieces of one segment. start: an export's tensors, laid over the base weights."""
    phase: PhaseConfig = getattr(config, name)
    if isinstance(phase, EncoderAdaptConfig):
        return _contrastive(config, name, phase, start, precision=precision, world=world)
    assert isinstance(phase, LanguagePhaseConfig)
    return _language(config, name, phase, segment, start, precision=precision, world=world)


def _contrastive(
    config: Config,
    name: str,
    phase: EncoderAdaptConfig,
    start: Mapping[str, Tensor],
    *,
    precision: str,
    world: World,
) -> Setup:
    dtype = dtype_of(precision)
    clip = image_text_model(config, start)
    if phase.activation_checkpointing:
        clip.model.set_grad_checkpointing()  # type: ignore[operator]
    task = ContrastiveTask(clip.model, loss=phase.loss)
    groups = encoder_groups(clip.model, phase)
    engine = Engine(task, groups, phase, name=name, precision=precision, world=world)
    train = open_training(config)
    val = open_split(config, config.data.val_split)
    share = share_of(world, phase.micro_batch)
    plan = train.plan(phase.global_batch, seed=config.seed)
    val_plan = val.in_order(phase.micro_batch * world.size, phase.val_records)
    pairs = pair_dataset(config, val, val_plan, clip, share, captions="all")
    probe = RetrievalProbe(
        engine,
        pairs=Pass(pairs, config.data.workers),
        references=References(val.reader, items_in_order(val_plan)),
        sample_images=phase.sample_images,
        dtype=dtype,
    )
    dataset = pair_dataset(config, train, plan, clip, share, captions=phase.captions)
    objective = ContrastiveObjective(engine, world, dtype, task.pair_loss)
    blend: Blend = as_trained
    if phase.merge_alpha < 1:
        blend = Interpolation(partial(_original_clip, config, start), phase.merge_alpha)
    return Setup(task, engine, objective, dataset, probe, blend)


def _original_clip(config: Config, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the contrastive phase started from, by the names of its task; loaded again."""
    clip = image_text_model(config, start)
    return {f"clip.{name}": each.detach() for name, each in clip.model.named_parameters()}


def _language(
    config: Config,
    name: str,
    phase: LanguagePhaseConfig,
    segment: Segment,
    start: Mapping[str, Tensor],
    *,
    precision: str,
    world: World,
) -> Setup:
    dtype = dtype_of(precision)
    config = as_segment_sees(config, segment)
    train = open_training(config)
    val = open_split(config, config.data.val_split)
    built = build_caption_model(
        config,
        start,
        {"train": train, "val": val},
        dtype=dtype,
        placement=placement_for(read_ds_config(name, phase.ds_config), precision, world),
        world=world,
    )
    smoothing = phase.label_smoothing if isinstance(phase, LLMTuneConfig) else 0.0
    if phase.activation_checkpointing:
        _save_activations(built.model, tower=trains_encoder(segment))
    task = LanguageTask(built.model, label_smoothing=smoothing)
    groups = part_groups(family(config.family).parts(built.model), segment, phase)
    engine = Engine(task, groups, phase, name=name, precision=precision, world=world)
    align = phase.align_weight if isinstance(phase, STAlignConfig) else 0.0
    objective = LanguageObjective(engine, world, dtype, align_weight=align)
    share = share_of(world, phase.micro_batch)

    def dataset(split: str, plan: Plan, captions: str) -> StepDataset:
        source, images = (train if split == "train" else val), built.images[split]
        return caption_dataset(
            config, source, plan, images, built.tokenizer, share, captions=captions
        )

    watched = Watched(config, name, phase, engine, built, val, partial(dataset, "val"), dtype)
    plan = train.plan(phase.global_batch, seed=config.seed)
    return Setup(task, engine, objective, dataset("train", plan, phase.captions), watched.probe())


def _save_activations(model: MultimodalLM, *, tower: bool) -> None:
    """Layers compute their activations again in the backward pass."""
    model.llm.gradient_checkpointing_enable()  # type: ignore[no-untyped-call]
    if tower and model.encoder is not None:
        model.encoder.visual.set_grad_checkpointing()  # type: ignore[operator]
