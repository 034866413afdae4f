"""A baseline and an EIM run side by side, as text, from what both left in their run directories.

Reads `summary.json` of each phase and `metrics.json` of each evaluated split, nothing else; shows
"-" for what is not there and says which command makes it. Does not assume that any of it exists,
nor that EIM wins: it prints what was measured.
"""

from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from pipeline.config import PHASES, TASKS
from pipeline.evaluation.compare_questions import answers_table
from pipeline.evaluation.run_records import REPORT, Record, Run, read_run
from pipeline.evaluation.tables import MISSING, count_text, row, score_text, table

DEFAULT_SPLIT = "test"
# Shown even where neither run has them, so that a missing score is seen to be missing.
EXPECTED_SCORES = ("CIDEr", "Bleu_4", "METEOR", "ROUGE_L")
ANSWERED = {"Perception"}  # scores of answers to questions, which captions do not have


def compare(runs: Path, name: str, baseline: str) -> str:
    """Compare the scores of two runs and show what each phase of the EIM run changed.

    Args:
        runs: the folder of all runs.
        name: the run with the EIM measures.
        baseline: the run of the same model without them.

    Returns:
        Several lines of text without a final line break.

    Raises:
        DataError: a summary or a metrics file is there but cannot be read.
    """
    eim, base = read_run(runs / name), read_run(runs / baseline)
    splits = sorted({*eim.evaluations, *base.evaluations}) or [DEFAULT_SPLIT]
    parts = [f"EIM run: {eim.folder}\nbaseline: {base.folder}"]
    parts += [_split_table(split, base, eim) for split in splits]
    parts += [_effort_table(base, eim), _phase_changes(eim), _where_next(runs, eim, base)]
    notes = _missing_notes(eim, base, splits)
    if notes:
        parts.append("\n".join(["What is missing", *notes]))
    parts.append(
        "EIM here is our reading of the paper's abstract. The scores are what these two runs got "
        "on this data,\nwith this seed; a small difference can be chance."
    )
    return "\n\n".join(parts)


def _split_table(split: str, base: Run, eim: Run) -> str:
    """Loss, caption scores and retrieval of one split, or how its questions were answered."""
    found = [run.evaluations.get(split) for run in (base, eim)]
    measured = [None if each is None else each.metrics for each in found]
    if any(each is not None and "benchmark" in each for each in measured):
        return answers_table(split, *measured)
    left, right = ({} if each is None else each.numbers for each in found)
    asked = not ANSWERED.isdisjoint({*left, *right})
    expected = () if asked else EXPECTED_SCORES
    names = dict.fromkeys([f"{split} loss", *expected, *left, *right])
    names.pop("loss", None)
    if not asked and not any("_r" in key and key[:3] in ("i2t", "t2i") for key in names):
        names["retrieval recall"] = None
    left[f"{split} loss"], right[f"{split} loss"] = left.pop("loss", None), right.pop("loss", None)
    records = [_records(each) for each in measured]
    title = f"Scores on the {split} split (records: baseline {records[0]}, EIM {records[1]})"
    rows = [row(name, left.get(name), right.get(name), score_text) for name in names]
    return table(title, rows)


def _records(metrics: Record | None) -> str:
    return MISSING if metrics is None else count_text(metrics.get("records", 0))


def _effort_table(base: Run, eim: Run) -> str:
    """What both runs cost: a fair comparison has seen as many records."""
    rows = [
        row("records seen", _total(base, "records_seen"), _total(eim, "records_seen"), count_text),
        row("seconds", _total(base, "seconds"), _total(eim, "seconds"), count_text),
    ]
    return table("Training, all phases together", rows)


def _total(run: Run, key: str) -> float | None:
    """The sum over phases, or None for a run without any."""
    if not run.phases:
        return None
    return sum(float(summary.get(key, 0)) for summary in run.phases.values())


def _phase_changes(eim: Run) -> str:
    """For each phase: its validation at step 0 and at its end, and what it took."""
    lines = ["What changed in each phase of the EIM run (validation, before -> after)"]
    for phase in PHASES:
        summary = eim.phases.get(phase)
        if summary is None:
            lines.append(f"  {phase}: {MISSING}")
            continue
        lines.append(
            f"  {phase} ({summary.get('state', 'state unknown')}): "
            f"{_count_or_missing(summary, 'trained_parameters')} parameters trained, "
            f"{_count_or_missing(summary, 'steps')} steps, "
            f"{_count_or_missing(summary, 'records_seen')} records, "
            f"{_count_or_missing(summary, 'seconds')} s"
        )
        validation = summary.get("validation") or {}
        start, end = (validation.get(when) or {} for when in ("start", "end"))
        for metric in dict.fromkeys([*start, *end]):
            before, after = (
                MISSING if side.get(metric) is None else score_text(side[metric])
                for side in (start, end)
            )
            lines.append(f"    {metric}: {before} -> {after}")
        if not start and not end:
            lines.append(f"    validation: {MISSING}")
    return "\n".join(lines)


def _count_or_missing(summary: Record, key: str) -> str:
    return MISSING if summary.get(key) is None else count_text(summary[key])


def _where_next(runs: Path, eim: Run, base: Run) -> str:
    lines = ["Where to look next", f"  curves and sample captions: tensorboard --logdir {runs}"]
    for label, run in (("EIM", eim), ("baseline", base)):
        for split in run.evaluations:
            folder = run.folder / "evaluate" / split
            page = folder / REPORT
            shown = page if page.is_file() else folder
            lines.append(f"  scores, curves and samples of the {label} run, {split} split: {shown}")
    if eim.evaluations and base.evaluations:
        both = f"{base.folder},{eim.folder}"
        lines.append(f"  a page with both side by side: python stages/report.py runs={both}")
    lines.append(f"  the recipe as it was run: {eim.folder / 'config.yaml'}")
    return "\n".join(lines)


def _missing_notes(eim: Run, base: Run, splits: Iterable[str]) -> list[str]:
    """One line for each missing piece, with the command that makes it."""
    selection = _selection(eim.config)
    notes = []
    for label, run, extra, needed in (
        ("EIM", eim, "", PHASES),
        ("baseline", base, " baseline=true", PHASES[-1:]),
    ):
        for phase in needed:
            enabled = OmegaConf.select(eim.config, f"{phase}.enabled", default=True)
            if enabled and phase not in run.phases:
                command = f"deepspeed stages/{phase}.py{selection}{extra}"
                notes.append(f"  {label}, {phase}: {command}")
        for split in splits:
            if split not in run.evaluations:
                command = f"deepspeed stages/evaluate.py{selection}{_chosen(split)}{extra}"
                notes.append(f"  {label}, {split} split: {command}")
    return notes


def _chosen(name: str) -> str:
    """The arguments that evaluate what lies in the folder of that name, see `output_folder`."""
    task, _, split = name.partition("-")
    if task not in TASKS:
        task, split = "", name
    named = f" task={task}" if task else ""
    return named if split == DEFAULT_SPLIT else f"{named} evaluate.split={split}"


def _selection(config: DictConfig) -> str:
    """The arguments that select this run's recipe and name, as far as its config.yaml tells."""
    recipe, name = (OmegaConf.select(config, key, default="") for key in ("recipe", "name"))
    arguments = [f" recipe={recipe}"] if recipe and recipe != "quickstart" else []
    if name and name != recipe:
        arguments.append(f" name={name}")
    return "".join(arguments)
