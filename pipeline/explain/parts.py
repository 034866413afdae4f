"""The parameters of a segment: how many each part has, which of them train, what a step needs.

Built by the same functions as for training, on the meta device: whatever they add (adapters, a
locked tower) is counted here without being known here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from pipeline import ds_config as ds
from pipeline.assemble import add_tower_adapters
from pipeline.config import Config, EncoderAdaptConfig, PhaseConfig
from pipeline.engine import dtype_of
from pipeline.explain.activations import (
    language_activations,
    pair_activations,
    pair_logits,
    tower_activations,
)
from pipeline.explain.sketches import sketch_language_model
from pipeline.memory import Parameters, persistence_threshold
from pipeline.models.encoder import ImageEncoder
from pipeline.models.encoder_sketch import sketch_clip
from pipeline.models.families import family
from pipeline.models.multimodal import MultimodalLM
from pipeline.models.placement import Blueprint
from pipeline.models.quantize import kept_inputs, quantized_sizes
from pipeline.phases import Group, Segment, as_segment_sees, encoder_groups, part_groups
from pipeline.tasks import QUESTIONS

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """One part of the model, in parameters."""

    total: int
    trained: int
    held: bool = True  # False: run once for the feature cache, then dropped


@dataclass(frozen=True)
class Census:
    """The model of one segment."""

    parts: Mapping[str, Part]
    rates: Mapping[str, float]  # learning-rate group -> share of the phase's rate
    parameters: Parameters  # of what DeepSpeed holds
    activations: int | None  # bytes of one micro-batch; None where the model does not say
    logits: int | None
    features: tuple[int, ...] | None = None  # shape of an image's, where they are cached


def census(
    config: Config,
    name: str,
    segment: Segment,
    *,
    precision: str,
    captions: float | None,
    ranks: int,
) -> Census:
    """Counts the model of a segment.

    Args:
        config: the recipe; its configurations must exist (see `with_sketches`).
        name: the phase.
        segment: which of it.
        precision: of the compute dtype.
        captions: of a record, on average; None leaves the activations out, which take longest.
        ranks: that share a global batch.

    Raises:
        ConfigError: a configuration is missing, or the sizes do not fit together.
    """
    phase: PhaseConfig = getattr(config, name)
    if isinstance(phase, EncoderAdaptConfig):
        found = _contrastive(config, name, phase, precision=precision, captions=captions)
        rows = -(-phase.global_batch // ranks)
        logits = pair_logits(rows, phase.global_batch, dtype_of(precision).itemsize)
        return replace(found, logits=logits)
    return _language(config, name, phase, segment, precision=precision, captions=captions)


def _contrastive(
    config: Config, name: str, phase: EncoderAdaptConfig, *, precision: str, captions: float | None
) -> Census:
    sketch = sketch_clip(config.encoder)
    add_tower_adapters(config, sketch.model, Blueprint())
    clip = sketch.model.to(dtype_of(precision))
    groups = encoder_groups(clip, phase)
    visual = clip.visual
    assert isinstance(visual, nn.Module)
    parts = {"encoder": _count(visual)}
    if isinstance(adapters := getattr(clip, "adapters", None), nn.Module):
        parts["encoder_adapters"] = _count(adapters)
    whole, towers = _count(clip), parts.values()
    parts["text"] = Part(
        whole.total - sum(each.total for each in towers),
        whole.trained - sum(each.trained for each in towers),
    )
    activations = None
    if captions is not None:
        activations = _traced(
            pair_activations,
            clip,
            images=phase.micro_batch,
            texts=_texts(phase, captions),
            image_size=sketch.image_size,
            context=sketch.context_length,
            recompute=phase.activation_checkpointing,
        )
    return Census(
        parts,
        _rates(groups),
        _parameters(clip, ds.read_ds_config(name, phase.ds_config)),
        activations,
        None,
    )


def _language(
    config: Config,
    name: str,
    phase: PhaseConfig,
    segment: Segment,
    *,
    precision: str,
    captions: float | None,
) -> Census:
    chosen, config = family(config.family), as_segment_sees(config, segment)
    encoder, model = sketch_language_model(config, precision=precision)
    modules = chosen.parts(model)
    groups = part_groups(modules, segment, phase)
    parts: dict[str, Part] = {}
    if encoder is not None:
        parts["encoder"] = replace(_count(encoder), held=model.encoder is not None)
    parts |= {part: _count(module) for part, module in modules.items()}
    traced = None
    if captions is not None:
        traced = _traced(
            _caption_activations,
            model,
            encoder=encoder,
            config=config,
            phase=phase,
            captions=captions,
        )
    activations, logits = traced or (None, None)
    parameters = _parameters(model, ds.read_ds_config(name, phase.ds_config))
    few = quantized_sizes(model.llm, config.llm.quantize)
    parameters = replace(parameters, quantized=few[0], quantized_bytes=few[1])
    cached = encoder is not None and model.encoder is None
    shape = encoder.feature_shape if encoder is not None and cached else None
    return Census(parts, _rates(groups), parameters, activations, logits, shape)


def _caption_activations(
    model: MultimodalLM,
    *,
    encoder: ImageEncoder | None,
    config: Config,
    phase: PhaseConfig,
    captions: float,
) -> tuple[int, int]:
    """Bytes kept of one micro-batch, the image tower's among them, and bytes of logits and loss."""
    kept, features = 0, None
    rows = phase.micro_batch if config.data.task == QUESTIONS else _texts(phase, captions)
    images, recompute = phase.micro_batch, phase.activation_checkpointing
    if model.encoder is not None:
        size = sketch_clip(config.encoder).image_size * max(config.encoder.scales)
        kept, features = tower_activations(
            model.encoder, images=images, image_size=size, recompute=recompute
        )
    elif encoder is not None:
        dtype = next(model.llm.parameters()).dtype
        features = torch.empty(images, *encoder.feature_shape, dtype=dtype, device="meta")
    body, logits = language_activations(
        model,
        rows=rows,
        prefix=family(config.family).slots(config),
        tokens=config.data.max_tokens,
        features=features,
        recompute=recompute,
        inputs_of=kept_inputs(model.llm, config.llm.quantize),
    )
    return kept + body, logits


def _texts(phase: PhaseConfig, captions: float) -> int:
    """Of a micro-batch."""
    return round(phase.micro_batch * (captions if phase.captions == "all" else 1))


def _traced(trace: Callable[..., T], model: nn.Module, **sizes: Any) -> T | None:
    """What `trace` finds, or None where the model cannot run on the meta device."""
    try:
        return trace(model, **sizes)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return None


def _count(module: nn.Module) -> Part:
    parameters = list(module.parameters())
    return Part(
        sum(each.numel() for each in parameters),
        sum(each.numel() for each in parameters if each.requires_grad),
    )


def _parameters(model: nn.Module, loaded: Mapping[str, object]) -> Parameters:
    counted = _count(model)
    threshold = persistence_threshold(loaded)
    own = [
        sum(each.numel() for each in module.parameters(recurse=False)) for module in model.modules()
    ]
    small = sum(each.numel() for each in model.parameters() if each.numel() < threshold)
    return Parameters(counted.trained, counted.total - counted.trained, max(own), small)


def _rates(groups: list[Group]) -> dict[str, float]:
    return {each.name: each.lr_scale for each in groups}
