"""The plan of each stage as one text: what is there, what would be made, skipped or refused.

One function a stage; `pipeline/stage.py` prints what it returns. Never raises for what is missing:
that is what a plan is there to say.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from pipeline.config import Config
from pipeline.data.settings import check_prepared
from pipeline.dist import World
from pipeline.engine import resolve_precision
from pipeline.errors import UserError
from pipeline.evaluation.finishing import COMMON_FILES, output_folder
from pipeline.explain.answers import describe_answers
from pipeline.explain.course import PhasePlan
from pipeline.explain.data import Outlook, outlook, training_outlook
from pipeline.explain.phase import (
    export_size,
    parameter_table,
    phase_text,
    plan_phase,
)
from pipeline.explain.resolved import resolved_recipe
from pipeline.explain.sketches import unmade_weights, with_sketches
from pipeline.explain.standing import FINISHED, OFF, RESUMES, STARTS, Standing, standing
from pipeline.explain.text import UNKNOWN, count, plural, section, size
from pipeline.models.families import family
from pipeline.phases import as_baseline, phases_before
from pipeline.preflight import problems
from pipeline.prerequisites import shards_missing, unmade
from pipeline.pretrain import recipes_of_pretraining
from pipeline.run import export_folder
from pipeline.talks import INSTRUCT, MME
from pipeline.tasks import QUESTIONS, scored

# Records of a split that nobody knows: only ratios of steps come from it.
_NOMINAL = 10**6


def explain_phase(config: Config, world: World, name: str) -> str:
    """What `stages/<name>.py` would do."""
    train = training_outlook(config)
    config = _effective(config, train)
    precision = resolve_precision(config.precision, world.device)
    with with_sketches(config) as sketched:
        plans = _plans(sketched, [*phases_before(config, name), name], train, precision, world)
        found = _standings(config, plans, precision, world)
        parts = [
            _heading(f"stages/{name}.py", config, world, precision),
            _way(config, found, train, stage=name),
            _not_ready(_judged(config, sketched), unmade(config), world, name),
            parameter_table(plans) if any(plan.counts for plan in plans) else "",
            phase_text(sketched, plans[-1], plans, train, world, precision),
            resolved_recipe(config),
        ]
    return _joined(parts)


def explain_evaluate(config: Config, world: World) -> str:
    """What `stages/evaluate.py` would do."""
    train = training_outlook(config)
    config = _effective(config, train)
    precision = resolve_precision(config.precision, world.device)
    with with_sketches(config) as sketched:
        plans = _plans(sketched, phases_before(config, "evaluate"), train, precision, world)
        found = _standings(config, plans, precision, world)
        parts = [
            _heading("stages/evaluate.py", config, world, precision),
            _way(config, found, train, stage="evaluate"),
            _not_ready(_judged(config, sketched), unmade(config), world, "evaluate"),
            parameter_table(plans) if any(plan.counts for plan in plans) else "",
            section("evaluate", _evaluation(config, world, plans)),
            resolved_recipe(config),
        ]
    return _joined(parts)


def explain_pretrain(config: Config, world: World) -> str:
    """What `stages/pretrain.py` would do."""
    precision = resolve_precision(config.precision, world.device)
    out = config.pretrain.out
    parts = [_heading("stages/pretrain.py", config, world, precision)]
    if not out:
        line = "pretrain.out is empty: this recipe brings its own weights and makes none"
        return _joined([*parts, line, resolved_recipe(config)])
    for folder, name, recipe in recipes_of_pretraining(config):
        train = training_outlook(recipe)
        there = (Path(out) / folder).is_dir()
        state = "there already, left alone" if there else "would be made"
        parts.append(section(str(Path(out) / folder), [(state, train.detail)]))
        with with_sketches(recipe) as sketched:
            (plan,) = _plans(sketched, [name], train, precision, world)
            if plan.counts:
                parts.append(parameter_table([plan]))
            parts.append(phase_text(sketched, plan, [plan], train, world, precision))
    return _joined([*parts, resolved_recipe(config)])


def _effective(config: Config, train: Outlook) -> Config:
    """The recipe that is really run, also where the number of records is not known yet."""
    return as_baseline(config, train.records or _NOMINAL) if config.baseline else config


def _plans(
    config: Config, names: Sequence[str], train: Outlook, precision: str, world: World
) -> list[PhasePlan]:
    return [
        plan_phase(config, name, train, precision=precision, ranks=world.size) for name in names
    ]


def _standings(
    config: Config, plans: Sequence[PhasePlan], precision: str, world: World
) -> dict[str, Standing]:
    return {
        plan.name: standing(config, plan.name, plan.segments, precision=precision, ranks=world.size)
        for plan in plans
    }


def _heading(stage: str, config: Config, world: World, precision: str) -> str:
    nodes = -(-world.size // world.local_size)
    where = f"{plural(world.size, 'rank')} on {plural(nodes, 'node')}"
    chosen = f"precision={config.precision}"
    if config.precision == "auto" and world.device.type == "cpu":
        chosen += ": no GPU here, precision=bf16 plans for one"
    run = Path(config.runs) / config.name
    return (
        f"Plan of {stage}. Nothing is trained or written.\n"
        f"Recipe {config.recipe}, run {run}; {where}, in {precision} ({chosen})."
    )


def _way(config: Config, found: dict[str, Standing], train: Outlook, *, stage: str) -> str:
    """What is there, and what each phase would do."""
    validation = outlook(config, config.data.val_split)
    rows = [
        ("training split", train.detail),
        ("validation split", validation.detail),
        *_weights(config),
        *((name, _told(config, name, each, stage)) for name, each in found.items()),
    ]
    if stage == "evaluate" and not config.make_missing:
        left = [name for name, each in found.items() if each.state != FINISHED]
        if left:
            rows.append(
                ("evaluate", f"refused: {left[-1]} is not finished; run stages/{left[0]}.py")
            )
    return section("What is there, and what would be done", rows)


def _told(config: Config, name: str, found: Standing, stage: str) -> str:
    """A phase's standing; without `make_missing` a stage leaves the other phases as they are."""
    if name == stage or config.make_missing or found.state in (FINISHED, OFF):
        return str(found)
    if found.state == RESUMES:
        return f"not finished: it would go on {found.detail}"
    return "not run yet" if found.state == STARTS else str(found)


def _weights(config: Config) -> list[tuple[str, str]]:
    encoder = f"{config.encoder.arch}, {config.encoder.pretrained or 'its own weights'}"
    if config.encoder.pretrained is None and ":" not in config.encoder.arch:
        encoder = f"{config.encoder.arch}, random weights"
    if not family(config.family).sees_images(config):
        encoder = "none: this model sees no images"
    rows = [("encoder", encoder), ("language model", config.llm.path)]
    if not config.pretrain.out or not config.make_missing:
        return rows
    out = Path(config.pretrain.out)
    missing = [each for each in ("clip", "llm") if not (out / each).is_dir()]
    if missing:
        made = " and ".join(str(out / each) for each in missing)
        rows.append(("made first", f"{made}, by pre-training (see stages/pretrain.py --plan)"))
    return rows


def _judged(config: Config, sketched: Config) -> Config:
    """The recipe to find faults in: sketches stand in for weights that it makes, for no others."""
    return sketched if unmade_weights(config) else config


def _not_ready(config: Config, missing: set[str], world: World, until: str) -> str:
    """What the stage would refuse, every fault once; empty where there is none."""
    faults = problems(config, world, until=until, unmade=missing)
    found = list(dict.fromkeys([*_prepared_otherwise(config), *(str(each) for each in faults)]))
    if not found:
        return ""
    rows = [(f"{number}.", text) for number, text in enumerate(found, start=1)]
    return section("To be mended before the first step", rows)


def _prepared_otherwise(config: Config) -> Iterator[str]:
    """Shards that are there, but of other settings than the recipe would make them with."""
    if not config.make_missing or shards_missing(config):
        return
    for entry in config.prepare.values():
        try:
            check_prepared(entry)
        except UserError as error:
            yield str(error)


def _evaluation(config: Config, world: World, plans: Sequence[PhasePlan]) -> list[tuple[str, str]]:
    settings, asked = config.evaluate, scored(config)
    split = outlook(asked, settings.split)
    records = split.records
    if records is not None and settings.records is not None:
        records = min(records, settings.records)
    calls = None if records is None else -(-records // (settings.batch * world.size))
    export = export_folder(config, plans[-1].name) if plans else settings.export
    weights = f", {size(export_size(plans))}" if plans and plans[-1].counts else ""
    rows = [
        ("model", f"{export}{weights}" if export else f"{UNKNOWN}: no phase makes a caption model"),
        ("split", f"{settings.split}: {split.detail}"),
        ("records", count(records)),
    ]
    shared = (
        f"{count(calls)} calls of {settings.batch} records on each of {plural(world.size, 'rank')}"
    )
    if asked.data.task == QUESTIONS:
        return [*rows, *describe_answers(config, records, shared)]
    tell = _TOLD.get(asked.data.task, _captioning)
    return [*rows, *tell(config, shared)]


def _answering_mme(config: Config, shared: str) -> list[tuple[str, str]]:
    return [
        ("answers", f"{shared}: generated, at most {config.evaluate.max_new_tokens} tokens"),
        ("also", "yes against no by likelihood; loss and perplexity of the true answers"),
        ("scores", "accuracy and accuracy+ of each subtask, perception and cognition"),
        (
            "writes",
            "answers/ and answers_likelihood/ (the benchmark's result files), "
            f"{COMMON_FILES} in {output_folder(config)}",
        ),
    ]


def _captioning(config: Config, shared: str) -> list[tuple[str, str]]:
    settings, java = config.evaluate, "found" if shutil.which("java") else "missing"
    beams = f"{plural(settings.beams, 'beam')}, at most {settings.max_new_tokens} tokens"
    return [
        ("captions", f"{shared}, {beams}"),
        ("also", "loss and perplexity of the true captions; recall of images and texts"),
        ("metrics", f"{', '.join(settings.metrics) or 'none'} (Java is {java})"),
        ("writes", f"predictions.jsonl, {COMMON_FILES} in {output_folder(config)}"),
    ]


def _conversing(config: Config, shared: str) -> list[tuple[str, str]]:
    settings = config.evaluate
    beams = f"{plural(settings.beams, 'beam')}, at most {settings.max_new_tokens} tokens"
    return [
        ("answers", f"{shared}, to the last question of each conversation, {beams}"),
        ("also", "loss and perplexity of the true answers"),
        ("metrics", ", ".join(settings.metrics) or "none"),
        ("writes", f"predictions.jsonl, {COMMON_FILES} in {output_folder(config)}"),
    ]


# How an evaluation is told, by task; the others are captions.
_TOLD: Mapping[str, Callable[[Config, str], list[tuple[str, str]]]] = MappingProxyType(
    {MME: _answering_mme, INSTRUCT: _conversing}
)


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"
