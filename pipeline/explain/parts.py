"""The parameters of a segment: how many each part has, which of them train, what a step needs.

Built by the same functions as for training, on the meta device: whatever they add (adapters, a
locked tower) is counted here without being known here. Weights need not exist; configurations must,
and where the recipe makes small weights itself their sizes are taken from `pretrain.scratch`.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from pipeline import ds_config as ds
from pipeline.assemble import add_tower_adapters
from pipeline.config import Config, EncoderAdaptConfig, EncoderConfig, LLMConfig, PhaseConfig
from pipeline.engine import dtype_of
from pipeline.errors import ConfigError
from pipeline.explain.activations import language_activations, pair_activations, pair_logits
from pipeline.memory import Parameters, persistence_threshold
from pipeline.models.encoder import ImageEncoder, depth_groups
from pipeline.models.encoder_sketch import LOCAL_DIR, sketch_clip
from pipeline.models.families import family
from pipeline.models.multimodal import MultimodalLM
from pipeline.models.placement import Blueprint
from pipeline.models.scratch import CLIP_CONFIG, write_configs
from pipeline.phases import Group, Segment, as_segment_sees, encoder_groups, part_groups
from pipeline.recipe import HOME

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


def sketch_language_model(
    config: Config, *, precision: str
) -> tuple[ImageEncoder | None, MultimodalLM]:
    """A recipe's frozen image tower, and its model as it trains, on the meta device.

    The model holds the tower only where features are not cached. Raises ConfigError where a
    configuration is missing, or the sizes do not fit together.
    """
    chosen = family(config.family)
    encoder = None
    if chosen.SEES_IMAGES:
        sketch = sketch_clip(config.encoder)
        visual = sketch.model.visual
        assert isinstance(visual, nn.Module)
        bare = ImageEncoder(visual, sketch.width, config.encoder.normalize, config.encoder.scales)
        encoder = chosen.tower(config, bare, Blueprint())
        encoder.requires_grad_(False)
    cached = encoder is None or config.data.cache_features
    model = chosen.build(
        config,
        dtype=dtype_of(precision),
        placement=Blueprint(),
        with_encoder=not cached,
        feature_width=None if encoder is None else encoder.width,
        encoder=None if cached else encoder,
    )
    return encoder, model


@contextmanager
def with_sketches(config: Config) -> Iterator[Config]:
    """The recipe with configurations in place of weights that are not here.

    Of small ones that are still to be made, and of a language model that is planned by its
    `llm.plan_by`. The configurations are gone when the block ends.
    """
    architecture = _architecture(config.llm)
    replaced = unmade_weights(config) | ({"llm"} if architecture is not None else set())
    if not replaced:
        yield config
        return
    with tempfile.TemporaryDirectory() as folder:
        write_configs(Path(folder), config.pretrain.scratch)
        if architecture is not None:
            shutil.copy(architecture, Path(folder, "llm", "config.json"))
        arch = f"{LOCAL_DIR}{folder}/clip" if "clip" in replaced else config.encoder.arch
        path = f"{folder}/llm" if "llm" in replaced else config.llm.path
        encoder: EncoderConfig = replace(config.encoder, arch=arch)
        language: LLMConfig = replace(config.llm, path=path)
        yield replace(config, encoder=encoder, llm=language)


def _architecture(llm: LLMConfig) -> Path | None:
    """The file that a language model is planned by; None where it is here, or nobody names one."""
    if llm.plan_by is None or Path(llm.path).is_dir():
        return None
    file = HOME / llm.plan_by
    if not file.is_file():
        raise ConfigError(f"llm.plan_by={llm.plan_by}: there is no such file; name a config.json")
    return file


def unmade_weights(config: Config) -> set[str]:
    """Of "clip" and "llm", what the recipe uses, makes itself, and has not made yet."""
    if not config.pretrain.out:
        return set()
    out = Path(config.pretrain.out)
    clip, llm = out / "clip", out / "llm"
    used = {
        "clip": config.encoder.arch == f"{LOCAL_DIR}{clip}" and not (clip / CLIP_CONFIG).is_file(),
        "llm": Path(config.llm.path) == llm and not (llm / "config.json").is_file(),
    }
    return {name for name, missing in used.items() if missing}


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
            layers=len(depth_groups(visual)) - 2 if phase.activation_checkpointing else 0,
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
    layers = int(getattr(model.llm.config.get_text_config(), "num_hidden_layers", 1))
    traced = None
    if captions is not None:
        traced = _traced(
            language_activations,
            model,
            rows=_texts(phase, captions),
            prefix=chosen.slots(config),
            tokens=config.data.max_tokens,
            features=None if encoder is None else encoder.feature_shape,
            layers=layers if phase.activation_checkpointing else 0,
        )
    activations, logits = traced or (None, None)
    parameters = _parameters(model, ds.read_ds_config(name, phase.ds_config))
    cached = encoder is not None and model.encoder is None
    shape = encoder.feature_shape if encoder is not None and cached else None
    return Census(parts, _rates(groups), parameters, activations, logits, shape)


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
