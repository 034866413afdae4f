"""Runs side by side, as text and as a page: recipes where they differ, curves, scores.

Reads what the runs have left and trains nothing; the first run is what the others are compared
with. Says for every score how sure it is; that one seed of training is one draw, it cannot tell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipeline.config import PHASES
from pipeline.errors import ConfigError
from pipeline.evaluation.curves import read_curves
from pipeline.evaluation.drawn import drawn_curves, drawn_evaluations
from pipeline.evaluation.run_records import Run, read_run
from pipeline.evaluation.score_tables import score_table
from pipeline.evaluation.tables import MISSING, count_text, score_text
from pipeline.overrides import expand
from pipeline.pages.cards import Cell, Table
from pipeline.pages.rendering import render
from pipeline.recipe_values import differing

_FEWEST = 2  # runs


@dataclass(frozen=True)
class Comparison:
    """Text for a terminal, and the same with plots as a page."""

    text: str
    page: str


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Compare two or more runs; the first one is the reference.

    Args:
        folders: of the runs.

    Raises:
        ConfigError: a folder is not there, holds no run, or is given twice.
        DataError: a file is there but cannot be read.
    """
    runs = _read(folders)
    tables = [_recipes(runs), *_scores(runs), *(_phase(runs, phase) for phase in _phases(runs))]
    title = f"Comparison of {', '.join(runs)}"
    facts = [f"{label}: {run.folder}" for label, run in runs.items()]
    drawn = list(drawn_curves({label: read_curves(run.folder) for label, run in runs.items()}))
    for name in _evaluations(runs):
        drawn += drawn_evaluations(
            {k: run.evaluations[name] for k, run in runs.items() if name in run.evaluations}
        )
    page = render("comparison.html", title=title, facts=facts, tables=tables, drawn=drawn)
    text = "\n\n".join(["\n".join([title, *facts]), *(each.as_text() for each in tables)])
    return Comparison(text, page)


def planned_comparison(folders: Sequence[Path]) -> str:
    """What `compare_runs` would compare, in a line; raises what that does."""
    runs = _read(folders)
    found = {"evaluations": _evaluations(runs), "phases": _phases(runs)}
    there = "; ".join(f"{what}: {', '.join(each) or 'none'}" for what, each in found.items())
    return f"Plan of stages/report.py: it would compare {', '.join(runs)} ({there})"


def named_runs(names: Sequence[str], runs: Path) -> list[Path]:
    """Run folders; names: of folders, or of runs in the folder `runs`; empty ones are passed over.

    Raises:
        ConfigError: fewer than two are named.
    """
    named = [each.strip() for each in names if each.strip()]
    if len(named) < _FEWEST:
        raise ConfigError(
            f"runs={','.join(names)} names {len(named)} run, and a comparison needs two or more; "
            "write runs=A,B"
        )
    paths = (Path(expand("runs", each)) for each in named)
    return [each if each.is_dir() else runs / each for each in paths]


def _read(folders: Sequence[Path]) -> dict[str, Run]:
    runs = {label: read_run(folder) for label, folder in _labels(folders).items()}
    for run in runs.values():
        if run.is_empty:
            raise ConfigError(
                f"runs: {run.folder} holds no run (neither config.yaml nor a phase nor an "
                "evaluation); name folders of runs, or runs here"
            )
    return runs


def _labels(folders: Sequence[Path]) -> dict[str, Path]:
    """Short names: a run's own where they differ, else its path."""
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"runs: there is no run {folder}; name folders of runs, or runs here")
    if len(folders) != len({each.resolve() for each in folders}):
        raise ConfigError("runs: a run is given twice; name each once")
    names = [each.resolve().name for each in folders]
    alike = len(set(names)) < len(names)
    return {
        str(folder) if alike else name: folder for name, folder in zip(names, folders, strict=True)
    }


def _recipes(runs: Mapping[str, Run]) -> Table:
    recipes = {k: OmegaConf.to_container(run.config, resolve=False) for k, run in runs.items()}
    found = differing({k: _named(each) for k, each in recipes.items()})
    rows = [
        (key, [Cell(MISSING if row.get(label) is None else str(row[label])) for label in runs])
        for key, row in found.items()
    ]
    notes = [] if rows else ["The recipes are the same, but for paths and the like."]
    return Table("Recipe values in which they differ", list(runs), rows, notes)


def _named(values: object) -> dict[str, Any]:
    """A recipe's values; none where the file holds something else."""
    return {str(k): each for k, each in values.items()} if isinstance(values, dict) else {}


def _phases(runs: Mapping[str, Run]) -> list[str]:
    return [phase for phase in PHASES if any(phase in run.phases for run in runs.values())]


def _phase(runs: Mapping[str, Run], phase: str) -> Table:
    """How a phase went: its length, its last training loss, its validation before and after."""
    found = {label: run.phases.get(phase, {}) for label, run in runs.items()}
    rows = [("state", [Cell(str(each.get("state", MISSING))) for each in found.values()])]
    for key in ("steps", "records_seen", "trained_parameters", "seconds"):
        cells = [_number(each.get(key), whole=True) for each in found.values()]
        rows.append((key.replace("_", " "), cells))
    rows.append(("train loss", [_number(each.get("train_loss_end")) for each in found.values()]))
    measured = [each.get("validation") or {} for each in found.values()]
    for name in dict.fromkeys(k for each in measured for k in each.get("end") or {}):
        cells = []
        for each in measured:
            before, after = (_number((each.get(when) or {}).get(name)) for when in ("start", "end"))
            cells.append(Cell(after.text, "" if after.text == MISSING else f"from {before.text}"))
        rows.append((f"validation {name}", cells))
    return Table(f"Training: {phase}", list(runs), rows)


def _evaluations(runs: Mapping[str, Run]) -> list[str]:
    return sorted({name for run in runs.values() for name in run.evaluations})


def _scores(runs: Mapping[str, Run]) -> list[Table]:
    return [
        score_table(f"Scores: {name}", {k: run.evaluations.get(name) for k, run in runs.items()})
        for name in _evaluations(runs)
    ]


def _number(value: float | None, *, whole: bool = False) -> Cell:
    if value is None:
        return Cell(MISSING)
    return Cell(count_text(value) if whole else score_text(value))
