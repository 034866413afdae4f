"""How a phase would go: its steps, records, data, learning rates and validation, as rows."""

import math
from dataclasses import dataclass

import numpy as np

from pipeline.config import Config, EncoderAdaptConfig, PhaseConfig
from pipeline.data.plan import arrange
from pipeline.dist import World
from pipeline.explain.data import Outlook
from pipeline.explain.parts import Census
from pipeline.explain.text import UNKNOWN, count, plural, rate
from pipeline.models.families import family
from pipeline.phases import Segment
from pipeline.talks import TALKS
from pipeline.tasks import QUESTIONS


@dataclass(frozen=True)
class PhasePlan:
    """One phase and what is known of it; `counts` lacks what could not be built."""

    name: str
    phase: PhaseConfig
    per_epoch: int | None  # steps
    segments: tuple[Segment, ...]
    counts: tuple[Census, ...]
    problem: str | None  # why there are no counts

    @property
    def steps(self) -> int | None:
        """Of the whole phase."""
        return self.segments[-1].stop if self.per_epoch and self.segments else None


def course(config: Config, plan: PhasePlan, train: Outlook, world: World) -> list[tuple[str, str]]:
    """What a phase does with the data, row by row."""
    phase = plan.phase
    micro = len(
        arrange(
            np.zeros(phase.global_batch, dtype=np.int64),
            micro_batch=phase.micro_batch,
            ranks=world.size,
            ranks_per_node=world.local_size,
        )[0]
    )
    rows = [
        ("steps", _steps(plan)),
        ("records", _records(plan, train)),
        (
            "a step",
            f"{plural(phase.global_batch, 'record')} over {plural(world.size, 'rank')}: "
            f"{plural(micro, 'micro-batch', 'micro-batches')} of up to {phase.micro_batch} on each",
        ),
        ("reading", _reading(config, phase, train, world)),
        *(("learning rates" if i == 0 else "", text) for i, text in enumerate(_rates(plan))),
        ("schedule", _schedule(plan)),
    ]
    if not isinstance(phase, EncoderAdaptConfig):
        places = family(config.family).slots(config)
        row = f"{places} image embeddings and " if places else ""
        text = f"{row}at most {config.data.max_tokens} tokens of text"
        if config.data.task == QUESTIONS:
            asked = config.scienceqa.format
            text = f"{asked}, at most {config.data.max_tokens} tokens, {places} of an image"
        elif config.data.task in TALKS:
            put = f"{config.data.task} in the template '{config.instruct.template}'"
            text = f"{put}, at most {config.data.max_tokens} tokens, {places} of an image"
        rows.append(("a row", text))
    rows.append(("validation", _validation(phase)))
    return rows


def _steps(plan: PhasePlan) -> str:
    if plan.per_epoch is None:
        return f"{UNKNOWN} (depends on the number of records)"
    ranges = [
        f"[{each.index}] {' + '.join(each.train)}: {each.start:,} to {each.stop:,}"
        for each in plan.segments
    ]
    text = f"{count(plan.steps)}, an epoch has {count(plan.per_epoch)}"
    return text if len(ranges) == 1 else f"{text}\n" + "\n".join(ranges)


def _records(plan: PhasePlan, train: Outlook) -> str:
    if plan.per_epoch is None or not train.records or plan.steps is None:
        return UNKNOWN
    epochs = plan.steps / plan.per_epoch
    seen = round(epochs * train.records)
    captions = "one caption of each" if plan.phase.captions == "one" else "all captions of each"
    if plan.phase.captions == "all":
        known = train.captions is not None
        captions += f" ({'' if known else 'taken for '}{train.captions_or_assumed:.1f})"
    return f"{count(seen)} seen: {epochs:.4g} x {count(train.records)}, {captions}"


def _reading(config: Config, phase: PhaseConfig, train: Outlook, world: World) -> str:
    lanes = math.gcd(config.data.lanes, phase.global_batch)
    own = f"{lanes / world.size:.3g} of them"
    each = UNKNOWN if train.shards is None else f"{train.shards / world.size:.3g}"
    workers = config.data.workers
    loading = plural(workers, "process", "processes") if workers else "the training process itself"
    return (
        f"shards: {count(train.shards)}, in {plural(lanes, 'lane')}; a rank takes {own}, about "
        f"{each} shards' worth an epoch, loaded by {loading}"
    )


def _rates(plan: PhasePlan) -> list[str]:
    """One line a segment, or one for all where they do not differ."""
    lines = []
    for segment, counted in zip(plan.segments, plan.counts, strict=False):
        peaks: dict[str, list[float]] = {}
        for name, share in counted.rates.items():
            peak = plan.phase.lr * segment.lr_scale * share
            peaks.setdefault(name.partition("/")[0], []).append(peak)
        texts = [
            f"{name} {rate(low)}"
            if low == (high := max(values))
            else f"{name} {rate(low)} to {rate(high)} ({len(values)} depths)"
            for name, values in peaks.items()
            for low in [min(values)]
        ]
        label = f"[{segment.index}] " if len(plan.segments) > 1 else ""
        lines.append(label + ", ".join(texts))
    return lines or [f"{rate(plan.phase.lr)} ({plan.name}.lr)"]


def _schedule(plan: PhasePlan) -> str:
    phase = plan.phase
    after = "constant" if phase.schedule == "constant" else f"{phase.schedule} to 0"
    each = " in each segment" if len(plan.segments) > 1 else ""
    return f"{plural(phase.warmup_steps, 'step')} of warm-up, then {after}{each}"


def _validation(phase: PhaseConfig) -> str:
    records = "all records" if phase.val_records is None else plural(phase.val_records, "record")
    return f"{records} at the start, every {plural(phase.eval_every, 'step')} and at the end"
