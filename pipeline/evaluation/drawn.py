"""Which plots belong to an evaluation and to training; how they look is `pages/plots.py`.

Shows what there is: a score by the benchmark's groups, or how the scores of single samples are
spread; yes and no of MME; lengths of texts; each phase's curves.
"""

from collections.abc import Iterator, Mapping

from pipeline.config import PHASES
from pipeline.evaluation.curves import Curves
from pipeline.evaluation.mme import NO, OTHER, YES, parse_answer
from pipeline.evaluation.mme_files import GENERATED, LIKELIHOOD, read_results
from pipeline.evaluation.run_records import Evaluation
from pipeline.evaluation.samples import Sample
from pipeline.evaluation.score_tables import sureness
from pipeline.pages.plots import Bar, Line, Plot, bars, curves, histogram, table_of_counts

_LOSSES = ("train/loss", "val/loss")
# Said by the loss; by the summary; much like recall of the images at 1.
_UNDRAWN = ("/perplexity", "/records_skipped", "_r5", "_r10", "/t2i_r1")


def drawn_curves(runs: Mapping[str, Mapping[str, Curves]]) -> Iterator[Plot]:
    """Loss and validation scores of each phase, all runs in one plot. runs: by label, by phase."""
    labels = list(runs)
    for phase in PHASES:
        of_phase = {label: found[phase] for label, found in runs.items() if phase in found}
        names = dict.fromkeys(name for each in of_phase.values() for name in each)
        if losses := _lines(of_phase, *_LOSSES):
            dashed = " (dashed: validation)" if any(line.dots for line in losses) else ""
            yield curves(f"{phase}: loss{dashed}", losses, labels)
        for name in names:
            if name not in _LOSSES and not name.endswith(_UNDRAWN):
                title = f"{phase}: {name.removeprefix('val/')} in validation"
                yield curves(title, _lines(of_phase, name), labels)


def _lines(runs: Mapping[str, Curves], *names: str) -> list[Line]:
    return [
        Line(label, each[name], dots=name.startswith("val/"))
        for label, each in runs.items()
        for name in names
        if each.get(name)
    ]


def drawn_evaluations(evaluations: Mapping[str, Evaluation]) -> Iterator[Plot]:
    """Of one split, all runs in one plot; by label."""
    groups = _groups(evaluations)
    if groups:
        series = {
            label: [_bar(each, name) for name in groups] for label, each in evaluations.items()
        }
        yield bars("Score by category", groups, series)
    for label, each in evaluations.items():
        yield from _yes_and_no(label, each)
    samples = {label: each.samples for label, each in evaluations.items() if each.samples}
    worth = {label: _worth(each) for label, each in samples.items() if _worth(each)}
    if worth and not groups:
        yield histogram("Scores of single samples", worth, x=_ordering(samples), whole=False)
    if samples:
        texts = {label: _texts(evaluations[label]) for label in samples}
        lengths = {label: [_words(text) for text in said] for label, (said, _) in texts.items()}
        (_, truth), *_ = texts.values()
        lengths["truth"] = [_words(text) for text in truth]
        yield histogram("Words of a text", lengths, x="words", whole=True)


def _texts(evaluation: Evaluation) -> tuple[list[str], list[str]]:
    """All that was said, and all that is true; of MME, whose samples hold several, each answer."""
    folder = evaluation.folder / GENERATED
    if folder.is_dir():
        answers = [each for found in read_results(folder).values() for each in found]
        return [each.text for each in answers], [each.truth for each in answers]
    samples = evaluation.samples
    return [each.predicted for each in samples], [text for each in samples for text in each.truth]


def _groups(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """The benchmark's groups that any of them has a score for, in the order of its table."""
    known = {name for each in evaluations.values() for one in each.samples for name in one.groups}
    scored = dict.fromkeys(name for each in evaluations.values() for name in each.numbers)
    return [name for name in scored if name in known]


def _bar(evaluation: Evaluation, name: str) -> Bar | None:
    value, found = evaluation.numbers.get(name), sureness(evaluation, name)
    if value is None:
        return None
    return Bar(value) if found is None else Bar(value, found.low, found.high)


def _worth(samples: list[Sample]) -> list[float]:
    return [each.score for each in samples if each.score is not None]


def _ordering(samples: Mapping[str, list[Sample]]) -> str:
    """The name of the score by which samples are sorted."""
    return next(name for each in samples.values() for one in each for name in one.scores)


def _yes_and_no(label: str, evaluation: Evaluation) -> Iterator[Plot]:
    """What MME's questions were answered with, by what is right; in each way of answering."""
    for folder, way in ((GENERATED, "generated"), (LIKELIHOOD, "likelier")):
        if not (evaluation.folder / folder).is_dir():
            continue
        counts = {truth: dict.fromkeys((YES, NO, OTHER), 0) for truth in (YES, NO)}
        for answers in read_results(evaluation.folder / folder).values():
            for each in answers:
                counts[each.truth.lower()][parse_answer(each.text)] += 1
        table = [list(row.values()) for row in counts.values()]
        yield table_of_counts(f"Yes and no, {way}: {label}", (YES, NO), (YES, NO, OTHER), table)


def _words(text: str) -> float:
    return float(len(text.split()))
