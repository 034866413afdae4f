"""Bootstrap intervals: as wide as theory says, paired where samples are the same, reproducible."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.evaluation.intervals import (
    Interval,
    interval,
    interval_of_sums,
    paired,
    paired_of_sums,
)


def drawn(count: int, seed: int, scale: float = 1.0) -> dict[str, float]:
    values = scale * np.random.default_rng(seed).standard_normal(count)
    return {f"k{i}": float(value) for i, value in enumerate(values)}


def test_an_interval_is_as_wide_as_the_normal_distribution_says() -> None:
    values = drawn(800, seed=1)
    found = interval([values])
    numbers = np.array(list(values.values()))
    error = numbers.std() / math.sqrt(len(numbers))
    assert found is not None and found.value == pytest.approx(numbers.mean())
    assert found.low == pytest.approx(numbers.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(numbers.mean() + 1.96 * error, abs=0.15 * error)


def test_strata_are_drawn_from_apart_and_added() -> None:
    """Within each all samples are alike, so nothing is left to chance."""
    same = interval([{"a": 150.0, "b": 150.0}, {"c": 20.0}])
    assert same == Interval(170.0, 170.0, 170.0)
    mixed = interval([{"a": 150.0, "b": 150.0, "c": 20.0}])
    assert mixed is not None and mixed.low < mixed.value < mixed.high


def test_what_is_hard_for_both_runs_cancels_out() -> None:
    hard, noise = drawn(300, seed=2, scale=10.0), drawn(300, seed=3, scale=0.1)
    better = {key: value + 0.1 + noise[key] for key, value in hard.items()}
    alone, between = interval([better]), paired([hard], [better])
    assert alone is not None and between is not None
    assert between.value == pytest.approx(0.1, abs=0.02) and between.excludes_zero
    assert between.high - between.low < (alone.high - alone.low) / 50
    assert paired([hard], [hard]) == Interval(0.0, 0.0, 0.0)


def test_other_samples_are_not_paired_and_nothing_has_no_interval() -> None:
    assert paired([{"a": 1.0}], [{"b": 1.0}]) is None
    assert paired([{"a": 1.0}], []) is None
    assert interval([]) is None and paired([], []) is None


def test_thousands_of_samples_give_the_same_interval_again() -> None:
    values = drawn(20_000, seed=4)
    assert interval([values]) == interval([dict(values)])


def mean(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of sums of (value, 1)."""
    found: NDArray[np.float64] = sums[..., 0] / sums[..., 1]
    return found


def same(one: Interval | None, other: Interval | None) -> bool:
    assert one is not None and other is not None
    return (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_a_score_of_sums_is_drawn_as_a_mean_is() -> None:
    """A mean is a formula of sums, too."""
    hard, noise = drawn(300, seed=2, scale=10.0), drawn(300, seed=3, scale=0.1)
    better = {key: value + 0.1 + noise[key] for key, value in hard.items()}
    first, second = ({key: (v, 1.0) for key, v in of.items()} for of in (hard, better))
    assert same(interval_of_sums(first, mean), interval([hard]))
    assert same(paired_of_sums(first, second, mean), paired([hard], [better]))


def test_other_samples_have_no_difference_of_sums() -> None:
    assert paired_of_sums({"a": (1.0, 1.0)}, {"b": (1.0, 1.0)}, mean) is None
    assert paired_of_sums({"a": (1.0, 1.0)}, {}, mean) is None
    assert interval_of_sums({}, mean) is None and paired_of_sums({}, {}, mean) is None
