"""Two runs' answers side by side: the benchmark's groups, and what stands behind them.

Accuracies are compared only where both runs were asked the same number of questions and answered in
the same way; where not, the table says so.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.evaluation.scienceqa import GROUPS
from pipeline.evaluation.tables import MISSING, count_text, row, score_text, table

Record = Mapping[str, Any]
_LABELS = ("baseline", "EIM")
_FLAG = "NOT COMPARABLE: the two were"


def answers_table(split: str, base: Record | None, eim: Record | None) -> str:
    """The table of one split.

    Args:
        split: its name.
        base, eim: what the runs' metrics.json hold; None where a run has none.
    """
    both = (base or {}, eim or {})
    benchmarks = [each.get("benchmark") or {} for each in both]
    left, right = (each.get("accuracy") or {} for each in benchmarks)
    groups = (*GROUPS, "Avg")
    rows = [row(name, left.get(name), right.get(name), _percent) for name in groups]
    rows.append(row(f"{split} loss", both[0].get("loss"), both[1].get("loss"), score_text))
    counts = [dict(_counts(each, found)) for each, found in zip(both, benchmarks, strict=True)]
    for name in dict.fromkeys([*counts[0], *counts[1]]):
        rows.append(row(name, counts[0].get(name), counts[1].get(name), count_text))
    title = f"Answers on the {split} split, accuracy in percent"
    return "\n".join([table(title, rows), *(f"  {line}" for line in _remarks(base, eim))])


def _counts(metrics: Record, benchmark: Record) -> Iterator[tuple[str, int]]:
    """What stands behind the accuracies."""
    if not metrics:
        return
    yield "questions", int(metrics.get("records", 0))
    yield "unparsed (wrong)", int(benchmark.get("unparsed", 0))
    yield "unanswered (wrong)", int(benchmark.get("unanswered", 0))
    for key, count in (benchmark.get("missing") or {}).items():
        yield f"{key} unknown", int(count)


def _remarks(base: Record | None, eim: Record | None) -> Iterator[str]:
    """How each was answered; first of all, what makes the two incomparable."""
    known = [each for each in (base, eim) if each is not None]
    ways = [each.get("answers", MISSING) for each in known]
    if len(set(ways)) > 1:
        yield f"{_FLAG} answered in different ways; evaluate one of them again"
    if len({each.get("records") for each in known}) > 1:
        yield f"{_FLAG} not asked the same questions; evaluate one of them again"
    if len(set(ways)) == 1:
        yield f"answered: {ways[0]}"
        return
    for label, way in zip(_LABELS, ways, strict=True):
        yield f"answered, {label}: {way}"


def _percent(value: float) -> str:
    return f"{value:.2f}"
