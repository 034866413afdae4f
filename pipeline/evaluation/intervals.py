"""How sure a score is: bootstrap intervals over samples, paired where two runs have the same.

SOURCE: Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 13 (percentile interval).
Resampling says how much another draw of samples would change a score; not what another seed of
training would. Pure numbers, the same for the same samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.corpus_scores import Formula

RESAMPLES = 2000
LEVEL = 0.95

_AT_ONCE = 4_000_000  # draws held in memory

Strata = Sequence[Mapping[str, float]]  # as `samples.strata`


@dataclass(frozen=True)
class Interval:
    """A score, or the difference of two, and where it lies with probability LEVEL."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is more than the chance of which samples were drawn."""
        return self.low > 0 or self.high < 0


def interval(strata: Strata) -> Interval | None:
    """Of the sum over strata of their means; None where there is nothing.

    Each stratum is drawn from by itself, with as many samples as it has.
    """
    return _of_means([np.array(list(each.values())) for each in strata if each])


def paired(first: Strata, second: Strata) -> Interval | None:
    """Of second minus first, by the samples that both have; None where they have other ones.

    The same draws for both, so that what is hard for both cancels out.
    """
    if len(first) != len(second) or any(
        one.keys() != other.keys() for one, other in zip(first, second, strict=True)
    ):
        return None
    pairs = zip(first, second, strict=True)
    return _of_means(
        [np.array([other[key] - one[key] for key in one]) for one, other in pairs if one]
    )


def interval_of_sums(counts: Mapping[str, Sequence[float]], formula: Formula) -> Interval | None:
    """Of a score that is a formula of sums over samples; None where there is nothing.

    Args:
        counts: key -> what a sample adds to the sums, K numbers.
        formula: from sums (..., K) to scores (...).
    """
    if not counts:
        return None
    values = np.array(list(counts.values()), np.float64)
    drawn = formula(_drawn_sums(values, np.random.default_rng(0)))
    return _between_tails(float(formula(values.sum(0))), drawn)


def paired_of_sums(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]], formula: Formula
) -> Interval | None:
    """Of second minus first, as `paired`; arguments: as in `interval_of_sums`."""
    if first.keys() != second.keys() or not first:
        return None
    values = np.array([[*first[key], *second[key]] for key in first], np.float64)
    half = values.shape[1] // 2

    def difference(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return formula(sums[..., half:]) - formula(sums[..., :half])

    drawn = difference(_drawn_sums(values, np.random.default_rng(0)))
    return _between_tails(float(difference(values.sum(0))), drawn)


def _of_means(strata: Sequence[NDArray[np.float64]]) -> Interval | None:
    """Of the sum of the means of values (N,) each."""
    if not strata:
        return None
    generator = np.random.default_rng(0)
    drawn = sum(_drawn_sums(each[:, None], generator)[:, 0] / len(each) for each in strata)
    return _between_tails(float(sum(each.mean() for each in strata)), np.asarray(drawn))


def _drawn_sums(values: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """(RESAMPLES, K): sums of values (N, K) over N of them, drawn with replacement."""
    samples = len(values)
    rows = max(_AT_ONCE // samples, 1)
    parts = []
    for start in range(0, RESAMPLES, rows):
        draws = min(rows, RESAMPLES - start)
        chosen = generator.integers(samples, size=(draws, samples))
        places = chosen + samples * np.arange(draws)[:, None]
        times = np.bincount(places.ravel(), minlength=draws * samples)
        parts.append(times.reshape(draws, samples) @ values)
    return np.concatenate(parts)


def _between_tails(value: float, drawn: NDArray[np.float64]) -> Interval:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
