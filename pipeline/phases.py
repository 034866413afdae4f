"""A phase as data: what trains, for how long, at which learning rates, after which phase.

Pure descriptions computed from the recipe; nothing here builds, loads or trains. The EIM measures
and their absence (`baseline`) are decided here and nowhere else.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from pipeline.config import (
    BASELINE_SUFFIX,
    PHASES,
    Config,
    EncoderAdaptConfig,
    LLMTuneConfig,
    PhaseConfig,
    SegmentConfig,
)
from pipeline.errors import ConfigError
from pipeline.models.encoder import depth_groups
from pipeline.models.families import family
from pipeline.models.lora import trainable
from pipeline.models.placement import full_shape

# The learnt numbers of an image-text model: its (inverse) temperature, and SigLIP's bias.
_CONSTANTS = ("logit_scale", "logit_bias")


@dataclass(frozen=True)
class Segment:
    """A stretch of a phase in which the same parts train, from step `start` to step `stop`."""

    index: int
    train: tuple[str, ...]
    start: int
    stop: int
    lr_scale: float

    @property
    def steps(self) -> int:
        """Optimizer steps of the segment."""
        return self.stop - self.start


def segments(config: Config, name: str, steps_per_epoch: int) -> tuple[Segment, ...]:
    """The segments of a phase, one after the other; `max_steps` cuts the whole phase."""
    phase: PhaseConfig = getattr(config, name)
    wanted = [SegmentConfig(epochs=phase.epochs)]
    if isinstance(phase, LLMTuneConfig) and phase.segments:
        wanted = list(phase.segments)
    limit = phase.max_steps if phase.max_steps is not None else math.inf
    found: list[Segment] = []
    start = 0
    for each in wanted:
        stop = int(min(start + max(round(each.epochs * steps_per_epoch), 1), limit))
        if stop > start:
            parts = tuple(each.train or _default_parts(config, name))
            found.append(Segment(len(found), parts, start, stop, each.lr_scale))
        start = stop
    return tuple(found)


def predecessor(config: Config, name: str) -> str | None:
    """The nearest enabled phase before `name`; None for the first."""
    before = PHASES[: PHASES.index(name)]
    enabled = [each for each in before if getattr(config, each).enabled]
    return enabled[-1] if enabled else None


def phases_before(config: Config, until: str) -> list[str]:
    """The phases that must be finished before `until`, in order.

    Not those before a phase with `init_from`, and none where `evaluate.export` is scored. config:
    the effective one. until: a phase, or `evaluate`.
    """
    if until == "evaluate":
        enabled = [name for name in PHASES if getattr(config, name).enabled]
        if config.evaluate.export is not None or not enabled:
            return []
        return [*phases_before(config, enabled[-1]), enabled[-1]]
    before = predecessor(config, until)
    if before is None or getattr(config, until).init_from is not None:
        return []
    return [*phases_before(config, before), before]


def as_baseline(config: Config, records: int) -> Config:
    """The same model with the EIM measures off, for the same number of records seen.

    records: in the training split. Without the measures there is one phase in one segment: all that
    the recipe's segments train (ST and LLM, the ST alone) trains together at one learning rate,
    the encoder stays as it came, plain cross-entropy, no average over steps. It sees as many
    records as the three phases together. What the model is stays: with LoRA the baseline trains the
    same adapters. Of disjoint parts of LLaMA-Adapter V2 the baseline trains both at once.
    """
    seen = 0
    for name in PHASES:
        phase = getattr(config, name)
        if phase.enabled:
            per_epoch = math.ceil(records / phase.global_batch)
            steps = sum(each.steps for each in segments(config, name, per_epoch))
            seen += min(steps * phase.global_batch, round(steps / per_epoch * records))
    default = _default_parts(config, "llm_tune")
    trained = [part for each in config.llm_tune.segments for part in each.train or default]
    if config.llama_adapter.disjoint:
        trained = [*_default_parts(config, "st_align"), *(trained or default)]
    parts = list(dict.fromkeys(trained or default))
    tune = replace(
        config.llm_tune,
        enabled=True,
        init_from=None,
        segments=[SegmentConfig(train=parts, epochs=seen / records)],
        max_steps=None,
        st_lr=None,
        encoder_lr=None,
        label_smoothing=0.0,
        ema=0.0,
    )
    return replace(
        config,
        name=config.name + BASELINE_SUFFIX,
        baseline=False,  # done: its recipe says what is off
        llama_adapter=replace(config.llama_adapter, disjoint=False),
        encoder_adapt=replace(config.encoder_adapt, enabled=False),
        st_align=replace(config.st_align, enabled=False),
        llm_tune=tune,
    )


def learning_rate(phase: PhaseConfig, segment: Segment, step: int) -> float:
    """The learning rate of optimizer step `step` (0-based within the segment).

    Linear warm-up to `lr`, then constant, linear or half-cosine decay to 0 at the segment's end.
    """
    peak = phase.lr * segment.lr_scale
    warmup = min(phase.warmup_steps, max(segment.steps - 1, 0))
    if step < warmup:
        return peak * (step + 1) / warmup
    if phase.schedule == "constant":
        return peak
    progress = (step - warmup) / max(segment.steps - warmup, 1)
    if phase.schedule == "linear":
        return peak * (1 - progress)
    return peak * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Group:
    """Named parameters with their share of the learning rate, and whether weights decay."""

    name: str
    parameters: list[nn.Parameter]
    lr_scale: float
    decays: bool = True


def trains_encoder(segment: Segment) -> bool:
    """Whether the image tower, or adapters in it, are among what trains."""
    return any(part.startswith("encoder") for part in segment.train)


def as_segment_sees(config: Config, segment: Segment) -> Config:
    """The recipe without cached features, where the segment trains what makes them."""
    if not trains_encoder(segment):
        return config
    return replace(config, data=replace(config.data, cache_features=False))


def encoder_groups(clip: nn.Module, phase: EncoderAdaptConfig) -> list[Group]:
    """Freezes what `train` and `text` leave out; groups the rest by depth for layer-wise decay.

    clip: an open_clip model; its `visual` is the tower, its `adapters` are in the tower where it
    has some, everything else is the text side, which trains at the full rate; of a locked one the
    temperature alone trains. Layer-wise decay as in Clark et al., ELECTRA, 2020; a locked tower as
    in Zhai et al., LiT, 2022, with the towers' roles exchanged.
    """
    text = _text_group(clip, phase)
    if phase.train != "adapters":
        _adapters(clip).requires_grad_(False)
        return [*_tower_groups(clip, phase), text]
    _visual(clip).requires_grad_(False)
    trained = list(_adapters(clip).requires_grad_(True).parameters())
    return [Group("encoder_adapters", trained, 1.0), text]


def _adapters(clip: nn.Module) -> nn.Module:
    found = getattr(clip, "adapters", None)
    return found if isinstance(found, nn.Module) else nn.Module()


def _visual(clip: nn.Module) -> nn.Module:
    visual = clip.visual
    assert isinstance(visual, nn.Module)
    return visual


def _tower_groups(clip: nn.Module, phase: EncoderAdaptConfig) -> list[Group]:
    visual = _visual(clip)
    named = dict(visual.named_parameters())
    whole = phase.train == "all" and phase.layer_decay == 1.0
    depths = [list(named)] if whole else depth_groups(visual)
    kept = len(depths) if phase.train == "all" else int(phase.train.partition(":")[2]) + 1
    if kept > len(depths):
        raise ConfigError(
            f"encoder_adapt.train={phase.train}: the tower has {len(depths) - 2} blocks; use a "
            "smaller N or 'all'"
        )
    found = []
    for depth, names in enumerate(depths):
        distance = len(depths) - 1 - depth
        trains = distance < kept
        parameters = [named[each] for each in names]
        for each in parameters:
            each.requires_grad_(trains)
        if trains and parameters:
            label = "encoder" if phase.layer_decay == 1.0 else f"encoder/depth-{depth:02d}"
            found.append(Group(label, parameters, phase.layer_decay**distance))
    return _merged(found)


def _text_group(clip: nn.Module, phase: EncoderAdaptConfig) -> Group:
    towers = (_visual(clip), _adapters(clip))
    inside = {id(each) for tower in towers for each in tower.parameters()}
    text = {name: each for name, each in clip.named_parameters() if id(each) not in inside}
    for name, each in text.items():
        if phase.text == "locked" and name not in _CONSTANTS:
            each.requires_grad_(False)
    label = "text" if phase.text == "train" else "temperature"
    trained = [each for each in text.values() if each.requires_grad]
    return Group(label, trained, 1.0)


def part_groups(
    parts: Mapping[str, nn.Module], segment: Segment, phase: PhaseConfig
) -> list[Group]:
    """Freezes all parts but the segment's, and groups those that train with their rates.

    Of a part with LoRA's adapters these alone train.

    Raises:
        ConfigError: the model has no such part, or two of them hold the same parameters.
    """
    missing = [part for part in segment.train if part not in parts]
    if missing:
        raise ConfigError(
            f"llm_tune.segments[{segment.index}].train: this model has no {', '.join(missing)}; "
            f"name some of {', '.join(parts)}, or switch it on in the recipe"
        )
    rates = dict.fromkeys(parts, 1.0)
    if isinstance(phase, LLMTuneConfig):
        own = {"st": phase.st_lr, "encoder_adapters": phase.encoder_lr}
        rates |= {part: lr / phase.lr for part, lr in own.items() if lr is not None}
    for module in parts.values():
        module.requires_grad_(False)
    groups = [Group(part, trainable(parts[part]), rates[part]) for part in segment.train]
    chosen = [parameter for group in groups for parameter in group.parameters]
    if len({id(each) for each in chosen}) < len(chosen):
        raise ConfigError(
            f"llm_tune.segments[{segment.index}].train: of {', '.join(segment.train)} one is a "
            "part of another; leave one out"
        )
    for each in chosen:
        each.requires_grad_(True)
    return groups


def split_by_decay(groups: Sequence[Group]) -> list[Group]:
    """Each group as what decays and what does not, of the same name; empty ones are left out.

    Vectors and scalars do not decay: norms, biases, the temperature. Matrices do, embeddings and
    learnt constants among them. As CLIP was trained (Radford et al., 2021, section 2.5: "all
    weights that are not gains or biases"), and as open_clip and nanoGPT tell them apart.
    """
    found = []
    for group in groups:
        for decays in (True, False):
            chosen = [p for p in group.parameters if (len(full_shape(p)) > 1) == decays]
            if chosen:
                found.append(Group(group.name, chosen, group.lr_scale, decays))
    return found


def _default_parts(config: Config, name: str) -> tuple[str, ...]:
    if name != "encoder_adapt":
        return family(config.family).trains(config, name)
    adapted = config.encoder_adapt.train == "adapters"
    return ("encoder_adapters",) if adapted else ("encoder",)


def _merged(groups: list[Group]) -> list[Group]:
    """Groups of one name as one."""
    by_name: dict[str, Group] = {}
    for each in groups:
        before = by_name.get(each.name)
        joined = each.parameters if before is None else before.parameters + each.parameters
        by_name[each.name] = Group(each.name, joined, each.lr_scale)
    return list(by_name.values())
