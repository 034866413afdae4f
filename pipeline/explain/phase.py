"""The plan of one phase as text: steps, data, learning rates, parameters, memory, disk.

Everything is asked of the functions that training itself uses. Numbers that depend on what is not
there yet show as "?".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from pipeline import ds_config as ds
from pipeline.checkpoint import WEIGHTS
from pipeline.config import PHASES, Config, EncoderAdaptConfig, PhaseConfig
from pipeline.data.plan import arrange
from pipeline.dist import World
from pipeline.errors import UserError
from pipeline.explain import budget
from pipeline.explain.data import Outlook
from pipeline.explain.parts import Census, Part, census
from pipeline.explain.text import UNKNOWN, count, millions, plural, rate, section, size, table
from pipeline.memory import export_bytes
from pipeline.models.families import family
from pipeline.phases import Segment, predecessor, segments


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


def plan_phase(
    config: Config, name: str, train: Outlook, *, precision: str, ranks: int
) -> PhasePlan:
    """Counts a phase's segments. config: effective, with sketches for what is still to be made."""
    phase: PhaseConfig = getattr(config, name)
    per_epoch = None if not train.records else math.ceil(train.records / phase.global_batch)
    stretches = segments(name, phase, per_epoch or 1)
    captions = train.captions_or_assumed
    try:
        counts = tuple(
            census(config, name, each, precision=precision, captions=captions, ranks=ranks)
            for each in stretches
        )
    except UserError as error:
        return PhasePlan(name, phase, per_epoch, stretches, (), str(error))
    return PhasePlan(name, phase, per_epoch, stretches, counts, None)


def parameter_table(plans: Sequence[PhasePlan]) -> str:
    """Which part trains in which segment of which phase."""
    parts = list(dict.fromkeys(p for plan in plans for c in plan.counts for p in c.parts))
    names = {"text": "text tower", "st": "ST", "llm": "LLM"}
    rows = []
    for plan in plans:
        for segment, counted in zip_longest(plan.segments, plan.counts):
            several = len(plan.segments) > 1
            label = f"{plan.name} [{segment.index}]" if several else plan.name
            if counted is None:
                rows.append([label, *(UNKNOWN for _ in parts), UNKNOWN])
                continue
            cells = [_cell(counted.parts.get(part)) for part in parts]
            rows.append([label, *cells, millions(counted.parameters.trained)])
    legend = "Parameters (* trains; + frozen, and gone while training: its features are cached)"
    return table(legend, ["", *(names.get(part, part) for part in parts), "trains"], rows)


def phase_text(
    config: Config,
    plan: PhasePlan,
    plans: Sequence[PhasePlan],
    train: Outlook,
    world: World,
    precision: str,
) -> str:
    """All about one phase. plans: of this phase and those before it."""
    sections = [section(plan.name, _course(config, plan, train, world))]
    if not plan.counts:
        rows = [(UNKNOWN, f"parameters, memory and disk: {plan.problem}")]
        return "\n\n".join([*sections, section("Not known yet", rows)])
    loaded = ds.read_ds_config(plan.name, plan.phase.ds_config)
    needs = [
        budget.need(each, loaded, precision=precision, ranks=world.size) for each in plan.counts
    ]
    columns = [f"[{each.index}] {' + '.join(each.train)}" for each in plan.segments]
    stage = f"ZeRO-{ds.zero_stage(loaded)}, {plural(world.size, 'rank')}, {precision}"
    sections.append(budget.memory_table(f"Memory of a rank ({stage})", columns, needs))
    sections.append(section("", _judgement(config, plan, plans, train, world, precision, needs)))
    return "\n".join([sections[0], "", sections[1], sections[2].lstrip("\n")])


def export_size(plans: Sequence[PhasePlan]) -> float:
    """Bytes of the last plan's export: all that trained up to there; a text tower stays behind."""
    trained: dict[str, int] = {}
    for plan in plans:
        for counted in plan.counts:
            for part, each in counted.parts.items():
                trained[part] = max(trained.get(part, 0), each.trained)
        if plan is not plans[-1]:
            trained.pop("text", None)
    phase = plans[-1].phase
    carried = 0.0
    if phase.init_from and (Path(phase.init_from) / WEIGHTS).is_file():
        carried = float((Path(phase.init_from) / WEIGHTS).stat().st_size)
    return export_bytes(sum(trained.values())) + carried


def chain(config: Config, name: str) -> list[str]:
    """The phases that a phase builds on, and itself, in order."""
    found = [name]
    while found[0] in PHASES and getattr(config, found[0]).init_from is None:
        before = predecessor(config, found[0])
        if before is None:
            break
        found.insert(0, before)
    return found


def _course(config: Config, plan: PhasePlan, train: Outlook, world: World) -> list[tuple[str, str]]:
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
        prompt = len(family(config.family).prompt_ids(config))
        row = f"{prompt} image embeddings and " if prompt else ""
        rows.append(("a row", f"{row}at most {config.data.max_tokens} tokens of text"))
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


def _judgement(
    config: Config,
    plan: PhasePlan,
    plans: Sequence[PhasePlan],
    train: Outlook,
    world: World,
    precision: str,
    needs: Sequence[budget.Need],
) -> list[tuple[str, str]]:
    largest = max(needs, key=lambda each: each.total)
    imagined = config.plan_ranks is not None
    rows = [("a rank needs", budget.verdict(largest, world, imagined=imagined))]
    if largest.states.host:
        rows.append(("in host memory", f"{size(largest.states.host)} a rank (offload)"))
    heaviest = plan.counts[list(needs).index(largest)]
    advice = budget.zero_advice(
        plan.name, plan.phase, heaviest, world, precision, imagined=imagined
    )
    if advice:
        rows.append(("ZeRO", advice))
    parameters = [each.parameters for each in plan.counts]
    one = budget.phase_disk(plan.phase, parameters, plan.name, precision, world.size)
    export = export_size(plans)
    wanted = budget.disk_needed(plan.phase, one, export)
    rows.append(
        (
            "on disk",
            f"{plan.phase.keep_checkpoints} checkpoints of {size(one)} (every "
            f"{plural(plan.phase.checkpoint_every, 'step')}), an export of {size(export)}; at most "
            f"{size(wanted)} of {size(budget.disk_free(config))} that are free",
        )
    )
    return rows


def _cell(part: Part | None) -> str:
    if part is None:
        return "-"
    if not part.trained:
        return f"{millions(part.total)} {' ' if part.held else '+'}"
    if part.trained == part.total:
        return f"{millions(part.total)} *"
    return f"{millions(part.trained)} of {millions(part.total)} *"
