"""`report.html` of an evaluation: scores, plots, and samples to look at, worst first (`shown.py`).

On rank 0, from the files that the evaluation and its baseline have left; pictures come from the
shards again. Knows no model, and no layout (`pipeline/pages`).
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.config import BASELINE_SUFFIX
from pipeline.data.faults import ContentFault
from pipeline.durable import write_text
from pipeline.errors import DataError
from pipeline.evaluation.curves import read_curves
from pipeline.evaluation.drawn import drawn_curves, drawn_evaluations
from pipeline.evaluation.run_records import REPORT, Evaluation, read_evaluation
from pipeline.evaluation.samples import Sample, worst_first
from pipeline.evaluation.score_tables import score_table
from pipeline.evaluation.shown import groups_of, shown_of, told_of
from pipeline.pages.cards import Card
from pipeline.pages.rendering import render
from pipeline.pages.thumbnails import thumbnail
from pipeline.splits import Split

log = logging.getLogger("pipeline")

BASELINE, OWN = "baseline", "this run"

_SIDE = 240  # pixels of a thumbnail; about 8 kB each

Places = Mapping[str, tuple[int, int]]  # record key -> (shard, record)


def write_reports(folder: Path, split: Split, places: Places, shown: int) -> None:
    """Write the report of an evaluation; of a baseline's, also that of the run it stands beside.

    That run may have been evaluated before its baseline was, or beside an older one. Where other
    samples were scored it is left alone, as its pictures may not be here; where it cannot be read
    or written, that is said and no fault of the baseline's. Takes and raises what `write_report`
    does.
    """
    write_report(folder, split, places, shown)
    run = folder.parents[1]
    if not run.name.endswith(BASELINE_SUFFIX):
        return
    beside = run.with_name(run.name.removesuffix(BASELINE_SUFFIX)) / "evaluate" / folder.name
    own = read_evaluation(folder)
    assert own is not None
    try:
        other = read_evaluation(beside)
        if other is not None and other.sampled == own.sampled:
            write_report(beside, split, places, shown)
    except (DataError, OSError) as error:
        log.warning("evaluate      %s stays without this baseline: %s", beside / REPORT, error)


def write_report(folder: Path, split: Split, places: Places, shown: int) -> Path:
    """Write the report beside the evaluation's other files; returns its path.

    Args:
        folder: runs/<name>/evaluate/<split>, with metrics.json and samples.jsonl.
        split: the records that were scored.
        places: where each of them lies.
        shown: most samples that are on the page.

    Raises:
        DataError: a file of this evaluation or of its baseline's cannot be read.
    """
    run = folder.parents[1]
    own = read_evaluation(folder)
    assert own is not None
    beside = run.with_name(run.name + BASELINE_SUFFIX)
    base = read_evaluation(beside / "evaluate" / folder.name)
    evaluations = {OWN: own} if base is None else {BASELINE: base, OWN: own}
    folders = {BASELINE: beside, OWN: run}
    curves = {label: read_curves(folders[label]) for label in evaluations}
    samples = worst_first(own.samples)
    chosen = shown_of(samples, shown)
    page = render(
        "report.html",
        script="grid.js",
        title=f"{run.name}: {folder.name}",
        facts=list(_facts(run.name, own, base)),
        scores=score_table("Scores", evaluations),
        told=own.metrics.get("table", ""),
        drawn=[*drawn_evaluations(evaluations), *drawn_curves(curves)],
        headline=_headline(len(samples), len(chosen)),
        groups=groups_of(chosen, samples),
        cards=[_card(each, split, places) for each in chosen],
        left_out=told_of(chosen, samples),
    )
    # A run and its baseline may be evaluated at the same time, and either writes the run's.
    write_text(folder / REPORT, page, shared=True)
    return folder / REPORT


def _facts(run: str, own: Evaluation, base: Evaluation | None) -> Iterator[str]:
    yield f"model: {own.metrics.get('export')}"
    if base is not None:
        yield f"baseline: {base.metrics.get('export')}"
    elif run.endswith(BASELINE_SUFFIX):
        yield f"the baseline of {run.removesuffix(BASELINE_SUFFIX)}: without the EIM measures"
    else:
        yield "no baseline has been evaluated on this split"


def _headline(samples: int, shown: int) -> str:
    if shown == samples:
        return f"All {samples:,} samples, worst first"
    return f"{shown:,} of {samples:,} samples, worst first"


def _card(sample: Sample, split: Split, places: Places) -> Card:
    return Card(
        name=sample.key,
        picture=_picture(split, places.get(sample.key)),
        said=sample.predicted,
        asked=sample.asked,
        truth=sample.truth,
        score=sample.score,
        groups=sample.groups,
    )


def _picture(split: Split, place: tuple[int, int] | None) -> str | None:
    """None for a record without an image, or with one that cannot be decoded."""
    if place is None:
        return None
    try:
        raw = split.reader.read(*place)
        if raw.image is None:
            return None
        return thumbnail(split.reader.image(raw, draft_size=_SIDE), _SIDE)
    except ContentFault:
        return None
