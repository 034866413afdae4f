"""The plan of one phase as text: steps, data, learning rates, parameters, memory, disk.

Everything is asked of the functions that training itself uses. Numbers that depend on what is not
there yet show as "?".
"""

import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from pipeline import ds_config as ds
from pipeline.config import Config, PhaseConfig
from pipeline.dist import World
from pipeline.errors import UserError
from pipeline.explain import budget
from pipeline.explain.course import PhasePlan, course
from pipeline.explain.data import Outlook
from pipeline.explain.parts import Part, census
from pipeline.explain.text import UNKNOWN, millions, plural, rows_of, section, size, table
from pipeline.exports import WEIGHTS
from pipeline.memory import export_bytes
from pipeline.phases import segments


def plan_phase(
    config: Config,
    name: str,
    train: Outlook,
    *,
    precision: str,
    ranks: int,
    activations: bool = True,
) -> PhasePlan:
    """Counts a phase's segments. config: effective, with sketches for what is still to be made."""
    phase: PhaseConfig = getattr(config, name)
    per_epoch = None if not train.records else math.ceil(train.records / phase.global_batch)
    stretches = segments(config, name, per_epoch or 1)
    captions = train.captions_or_assumed if activations else None
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
    names = {"text": "text tower", "st": "ST", "llm": "LLM", "encoder_adapters": "its adapters"}
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
    rows = course(config, plan, train, world)
    if not plan.counts:
        rows.append(("memory, disk", f"{UNKNOWN} (because of what is to be mended above)"))
        return section(plan.name, rows)
    loaded = ds.read_ds_config(plan.name, plan.phase.ds_config)
    needs = [
        budget.need(each, plan.phase, loaded, precision=precision, ranks=world.size)
        for each in plan.counts
    ]
    columns = [" + ".join(each.train) for each in plan.segments]
    if len(columns) > 1:
        columns = [f"[{index}] {name}" for index, name in enumerate(columns)]
    stage = f"ZeRO-{ds.zero_stage(loaded)}, {plural(world.size, 'rank')}, {precision}"
    memory = budget.memory_table(f"Memory of a rank ({stage})", columns, needs)
    judged = rows_of(_judgement(config, plan, plans, train, world, precision, needs))
    return "\n".join([section(plan.name, rows), "", memory, judged])


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
    if heaviest.features and train.records:
        cache = size(4 * math.prod(heaviest.features) * train.records)
        rows.append(
            ("features", f"images are encoded once before: {cache} in {config.runs}/features")
        )
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
