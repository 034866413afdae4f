"""Evaluations of the same split side by side: every score, how sure it is, how much it differs.

The first one is what the others are compared with. A difference has an interval where both were
scored on the same samples and it is known what each adds to the score.
"""

from collections.abc import Iterator, Mapping, Sequence

from pipeline.evaluation.corpus_scores import FORMULAS
from pipeline.evaluation.intervals import (
    LEVEL,
    Interval,
    interval,
    interval_of_sums,
    paired,
    paired_of_sums,
)
from pipeline.evaluation.run_records import Evaluation
from pipeline.evaluation.samples import counts_of, strata
from pipeline.evaluation.tables import MISSING, count_text
from pipeline.pages.cards import Cell, Table

_NOT_COMPARABLE = "NOT COMPARABLE: "


def score_table(title: str, evaluations: Mapping[str, Evaluation | None]) -> Table:
    """All scores of a split; evaluations: by the name of the run, None where it has none.

    Raises:
        DataError: a file of samples cannot be read.
    """
    found = {label: each for label, each in evaluations.items() if each is not None}
    names = list(dict.fromkeys(name for each in found.values() for name in each.numbers))
    (first, *others) = evaluations.values()
    heads = [*evaluations, *_difference_heads([*evaluations][1:])]
    rows = []
    for name in names:
        cells = [score_cell(each, name) for each in evaluations.values()]
        cells += [_difference(first, each, name) for each in others]
        rows.append((name, cells))
    records = [
        Cell(MISSING if each is None else count_text(each.metrics.get("records", 0)))
        for each in evaluations.values()
    ]
    unsure = [name for name, cells in rows if not any(each.small for each in cells)]
    rows.append(("samples", [*records, *(Cell("") for _ in others)]))
    return Table(title, heads, rows, list(_notes(found, unsure)))


def _difference_heads(others: Sequence[str]) -> list[str]:
    return ["difference"] if len(others) == 1 else [f"{label}: difference" for label in others]


def sureness(evaluation: Evaluation | None, name: str) -> Interval | None:
    """Of a score; None where it is not known what single samples add to it."""
    if evaluation is None:
        return None
    if name in FORMULAS:
        counted, formula = FORMULAS[name]
        return interval_of_sums(counts_of(evaluation.samples, counted), formula)
    return interval(strata(evaluation.samples, name))


def _paired(first: Evaluation, other: Evaluation, name: str) -> Interval | None:
    """Of other minus first."""
    if name in FORMULAS:
        counted, formula = FORMULAS[name]
        before, after = (counts_of(each.samples, counted) for each in (first, other))
        return paired_of_sums(before, after, formula)
    return paired(strata(first.samples, name), strata(other.samples, name))


def score_cell(evaluation: Evaluation | None, name: str) -> Cell:
    """A score with its interval."""
    value = None if evaluation is None else evaluation.numbers.get(name)
    if value is None:
        return Cell(MISSING)
    places = _places(value)
    return Cell(f"{value:{places}}", _range(sureness(evaluation, name), places))


def _difference(first: Evaluation | None, other: Evaluation | None, name: str) -> Cell:
    """Other minus first."""
    if first is None or other is None:
        return Cell(MISSING)
    before, after = first.numbers.get(name), other.numbers.get(name)
    if before is None or after is None:
        return Cell(MISSING)
    places = f"+{_places(before, after)}"
    # Adding 0 makes of -0 a 0.
    return Cell(f"{after - before + 0.0:{places}}", _range(_paired(first, other, name), places))


def _range(found: Interval | None, places: str) -> str:
    return "" if found is None else f"{found.low:{places}} to {found.high:{places}}"


def _places(*values: float) -> str:
    """0.1234, 41.34, 963.61"""
    return ".4f" if all(abs(each) < 10 for each in values) else ".2f"


def _notes(evaluations: Mapping[str, Evaluation], unsure: Sequence[str]) -> Iterator[str]:
    """What a reader should know; unsure: the scores without any interval."""
    known = list(evaluations.values())
    if any(each.samples for each in known):
        yield (
            f"Small numbers: where the score lies with {LEVEL:.0%} probability, by bootstrap over "
            "samples (differences: over the samples of both). Another seed is not in it."
        )
        if unsure:
            yield f"Without: {', '.join(unsure)}, of which nothing is kept for single samples."
    yield from (f"{_NOT_COMPARABLE}{why}" for why in _incomparable(evaluations))
    for label, each in evaluations.items():
        if (way := each.metrics.get("answers")) is not None:
            yield f"answered, {label}: {way}"
    for label, each in evaluations.items():
        for why, count in sorted((each.metrics.get("skipped") or {}).items()):
            yield f"{label}: {count_text(count)} skipped: {why}"


def _incomparable(evaluations: Mapping[str, Evaluation]) -> Iterator[str]:
    """Why the numbers do not stand for the same thing; a reason includes those behind it."""
    tasks = {label: each.task for label, each in evaluations.items() if each.task is not None}
    if len(set(tasks.values())) > 1:
        named = ", ".join(f"{label}: {task}" for label, task in tasks.items())
        yield f"the tasks differ ({named}); name runs of one task"
        return
    known = list(evaluations.values())
    if len({each.metrics.get("answers") for each in known}) > 1:
        yield "answered in different ways; evaluate one of them again"
    counts = {each.metrics.get("records") for each in known}
    if len(counts) > 1 or len({each.sampled for each in known if each.samples}) > 1:
        yield "not scored on the same samples; evaluate one of them again"
