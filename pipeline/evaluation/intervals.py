"""How sure a score is: bootstrap intervals over samples, paired where two runs have the same.

SOURCE: Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 13 (percentile interval).
Resampling says how much another draw of samples would change a score; not what another seed of
training would. Pure numbers, the same for the same samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    return _percentile([np.array(list(each.values())) for each in strata if each])


def paired(first: Strata, second: Strata) -> Interval | None:
    """Of second minus first, by the samples that both have; None where they have other ones.

    The same draws for both, so that what is hard for both cancels out.
    """
    if len(first) != len(second) or any(
        one.keys() != other.keys() for one, other in zip(first, second, strict=True)
    ):
        return None
    pairs = zip(first, second, strict=True)
    return _percentile(
        [np.array([other[key] - one[key] for key in one]) for one, other in pairs if one]
    )


def _percentile(strata: Sequence[NDArray[np.float64]]) -> Interval | None:
    """Of values (N,) each."""
    if not strata:
        return None
    generator = np.random.default_rng(0)
    drawn = np.zeros(RESAMPLES)
    for values in strata:
        rows = max(_AT_ONCE // len(values), 1)
        for start in range(0, RESAMPLES, rows):
            size = (min(rows, RESAMPLES - start), len(values))
            chosen = generator.integers(len(values), size=size)
            drawn[start : start + rows] += values[chosen].mean(1)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(float(sum(each.mean() for each in strata)), float(low), float(high))
