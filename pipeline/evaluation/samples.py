"""One line for each scored sample: `samples.jsonl`, the same for captions, questions and MME.

What pages show and what intervals are computed from. Every run on the same split has the same keys,
so that runs can be compared sample by sample. Pure data and its file; scores nothing.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.errors import DataError
from pipeline.evaluation.mme import SUMS

FILE = "samples.jsonl"


@dataclass(frozen=True)
class Sample:
    """A record with what was said of it, what is true, and what that is worth.

    `scores`: by the name of a score of the run, whose mean over the samples that have it is the
    run's score. The first one orders samples from worst to best.
    """

    key: str
    predicted: str  # of several questions a line each
    truth: tuple[str, ...]  # any of them is right; of several questions one text with a line each
    scores: Mapping[str, float]
    asked: str = ""
    groups: tuple[str, ...] = field(default=())  # of the benchmark, that it belongs to
    # By name, what it adds to scores that are no means over samples (`corpus_scores.FORMULAS`).
    counts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """What it is worth; None where nothing was scored."""
        return next(iter(self.scores.values()), None)


def worst_first(samples: Iterable[Sample]) -> list[Sample]:
    """By score, and samples of equal score in their order."""
    return sorted(samples, key=lambda each: 0.0 if each.score is None else each.score)


def strata(samples: Iterable[Sample], score: str) -> list[dict[str, float]]:
    """Key -> share, of the sets of samples whose means added up are the run's score.

    One set for most scores; one a subtask for MME's sums. Empty where the score is no mean over
    samples (BLEU, METEOR: `counts_of`).
    """
    parts: dict[str, dict[str, float]] = {name: {} for name in SUMS.get(score, (score,))}
    for each in samples:
        for name in parts.keys() & each.scores.keys():
            parts[name][each.key] = each.scores[name]
    return [found for found in parts.values() if found]


def counts_of(samples: Iterable[Sample], name: str) -> dict[str, tuple[float, ...]]:
    """Key -> what each sample adds to a score's sums; name: of the counts."""
    return {each.key: each.counts[name] for each in samples if name in each.counts}


def write_samples(folder: Path, samples: Iterable[Sample]) -> None:
    """Write samples.jsonl, in one go."""
    writing = folder / f".{FILE}.tmp"
    with writing.open("w", encoding="utf-8") as file:
        for each in samples:
            file.write(json.dumps(asdict(each), ensure_ascii=False) + "\n")
    writing.replace(folder / FILE)


def read_samples(folder: Path) -> list[Sample]:
    """Read samples.jsonl; none where an evaluation left no such file.

    Raises:
        DataError: a line is no sample.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            values = json.loads(line)
            made = Sample(**values)
            counts = {name: tuple(each) for name, each in made.counts.items()}
            lists = {"truth": tuple(made.truth), "groups": tuple(made.groups), "counts": counts}
            found.append(Sample(**values | lists))
        except (ValueError, TypeError, AttributeError) as error:
            cause = " ".join(str(error).split())
            raise DataError(
                f"{path}: line {number} is no sample ({cause}): run stages/evaluate.py again"
            ) from error
    return found
