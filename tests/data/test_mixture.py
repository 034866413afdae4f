"""A mixture's promises: counts by weight, another fraction each epoch, sets in proportion."""

import hashlib
import itertools
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.mixture import Mixture
from pipeline.data.plan import Plan

sets = st.lists(
    st.tuples(
        st.lists(st.integers(0, 30), min_size=1, max_size=6),  # shard sizes
        st.one_of(st.just(1.0), st.floats(0.05, 3.5)),
    ),
    min_size=1,
    max_size=4,
)
plans = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**40),
        "global_batch": st.integers(1, 48),
        "lanes": st.integers(1, 70),
        "window": st.integers(1, 30),
    }
)


def mixed(parts, **kwargs) -> Plan:
    sizes = [size for part, _ in parts for size in part]
    return Plan(sizes, sets=[(len(part), weight) for part, weight in parts], **kwargs)


def counts(plan: Plan, epoch: int) -> Counter:
    steps = (plan.step(epoch, k) for k in range(plan.steps_per_epoch))
    return Counter((int(s), int(r)) for step in steps for s, r in step)


def set_counts(parts, found: Counter) -> list[list[int]]:
    """For each set, how often each of its records came."""
    result, first = [], 0
    for sizes, _ in parts:
        result.append([found[first + s, r] for s, n in enumerate(sizes) for r in range(n)])
        first += len(sizes)
    assert sum(map(sum, result)) == found.total()
    return result


@given(sets, plans, st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_every_record_comes_as_often_as_its_weight_says(parts, kwargs, epoch):
    plan = mixed(parts, **kwargs)
    for (sizes, weight), found in zip(parts, set_counts(parts, counts(plan, epoch)), strict=True):
        assert sum(found) == round(weight * sum(sizes))
        assert not found or max(found) - min(found) <= 1
        if weight == 1.0:
            assert set(found) <= {1}
    assert plan.records == sum(round(weight * sum(sizes)) for sizes, weight in parts)


@given(sets, plans)
@settings(max_examples=60, deadline=None)
def test_all_batches_are_full_but_the_last_and_any_step_is_the_same_afresh(parts, kwargs):
    plan = mixed(parts, **kwargs)
    steps = [plan.step(2, k) for k in range(plan.steps_per_epoch)]
    assert all(len(step) == kwargs["global_batch"] for step in steps[:-1])
    assert all(0 < len(step) <= kwargs["global_batch"] for step in steps[-1:])
    for k in reversed(range(len(steps))):
        np.testing.assert_array_equal(mixed(parts, **kwargs).step(2, k), steps[k])


@pytest.mark.parametrize("weight", [0.5, 0.3, 2.5, 1.1])
def test_the_fraction_is_another_one_each_epoch_and_over_the_epochs_all_come_equally(weight):
    parts = [([50] * 8, 1.0), ([40, 60, 1, 99, 30], weight)]
    plan = mixed(parts, seed=5, global_batch=16, lanes=8, window=20)
    extra, total = [], np.zeros(230, dtype=int)
    for epoch in range(10):
        found = np.array(set_counts(parts, counts(plan, epoch))[1])
        extra.append(set(np.flatnonzero(found > int(weight))))
        total += found
        assert len(extra[-1]) == round((weight % 1) * 230)
        assert total.max() - total.min() <= 1
    assert all(first != second for first, second in itertools.pairwise(extra))
    if weight % 1 == 0.5:  # the two halves
        assert not extra[0] & extra[1] and len(extra[0] | extra[1]) == 230
    assert set.union(*extra) == set(range(230))


def test_the_fraction_depends_on_the_seed_and_is_no_prefix():
    def chosen(seed: int) -> list[int]:
        parts = [([1] * 100, 0.5)]
        plan = mixed(parts, seed=seed, global_batch=4, lanes=4, window=10)
        return set_counts(parts, counts(plan, 0))[0]

    assert chosen(0) != chosen(1)
    assert 10 < sum(chosen(0)[:50]) < 40


def test_every_stretch_of_the_row_holds_the_sets_in_proportion():
    parts = [([700, 300], 1.0), ([250] * 4, 2.5), ([90], 0.7), ([500], 3.0)]
    sizes = [size for part, _ in parts for size in part]
    row = Mixture(sizes, [(len(part), weight) for part, weight in parts], seed=0)
    items = row.locate(0, np.arange(row.records))
    which = np.searchsorted([2, 6, 7], items[:, 0], side="right")
    for number, (part, weight) in enumerate(parts):
        came = np.cumsum([0, *(which == number)])
        share = round(weight * sum(part)) / row.records
        deviation = came - share * np.arange(len(came))
        assert np.ptp(deviation) < len(parts)  # between any two places of the row


def test_steps_hold_the_sets_in_proportion():
    parts = [([1000] * 6, 1.0), ([500] * 4, 1.5)]
    plan = mixed(parts, seed=1, global_batch=64, lanes=16, window=64)
    per_step = [plan.records_by_set(plan.step(0, k)) for k in range(plan.steps_per_epoch - 1)]
    second = np.array(per_step)[:, 1]
    window = 16  # steps in which every lane passes one window: only the edges are left to chance
    sums = np.convolve(second, np.ones(window), mode="valid")[::window]
    assert np.abs(sums / (64 * window) - 1 / 3).max() < 0.02
    assert np.abs(second / 64 - 1 / 3).max() < 0.25


def test_a_plan_of_one_set_is_what_it_was_before_there_were_mixtures():
    sizes = [37, 0, 120, 5, 64, 200, 1]
    known = "f92276bd72221c5fe69ffcd8249a0b43adbbdcda7d317584e61f847505aaf336"
    for one_set in ([], [(7, 1.0)]):
        plan = Plan(sizes, sets=one_set, seed=11, global_batch=24, lanes=16, window=10)
        digest = hashlib.sha256()
        for epoch in range(3):
            for k in range(plan.steps_per_epoch):
                digest.update(plan.step(epoch, k).tobytes())
        assert digest.hexdigest() == known


def test_a_lane_reads_each_set_nearly_in_order():
    parts = [([100] * 20, 1.0), ([100] * 10, 1.0)]
    plan = mixed(parts, seed=0, global_batch=8, lanes=4, window=50)
    lane = np.concatenate([plan.step(0, k)[:2, 0] for k in range(plan.steps_per_epoch)])
    for own in (lane[lane < 20], lane[lane >= 20]):
        last = {shard: i for i, shard in enumerate(own)}
        first = {shard: i for i, shard in reversed(list(enumerate(own)))}
        assert all(last[shard] - first[shard] < 100 + 2 * 50 for shard in last)


def test_any_step_of_a_huge_mixture_costs_little_time_and_memory():
    shards = np.full(100_000, 10_000)
    kwargs = {"sets": [(60_000, 1.0), (40_000, 2.5001)], "seed": 0, "global_batch": 4096}
    tracemalloc.start()
    plan = Plan(shards, **kwargs)
    first, last = plan.step(3, 0), plan.step(3, plan.steps_per_epoch - 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.records == 1_600_040_000
    assert first.shape == (4096, 2) and len(last) == plan.records % 4096
    assert peak < 40_000_000  # bytes: four permutations of the shards; one of the records is 13e9
    began = time.perf_counter()
    Plan(shards, **kwargs).step(3, plan.steps_per_epoch // 2)
    assert time.perf_counter() - began < 1.0  # seconds; it takes a thirtieth of that


def test_positions_beyond_64_bits_are_exact():
    sizes = [3 * 10**9, 5 * 10**9]
    row = Mixture(sizes, [(1, 1.0), (1, 1.0)], seed=0)
    items = row.locate(0, np.arange(row.records - 800, row.records))
    for shard, (size, came) in enumerate(zip(sizes, (300, 500), strict=True)):
        own = items[items[:, 0] == shard, 1]
        np.testing.assert_array_equal(own, np.arange(size - came, size))


@pytest.mark.parametrize("wrong", [[(1, 1.0)], [(2, 0.0)], [(3, 1.0)], [(1, 1.0), (1, -2.0)]])
def test_wrong_sets_are_refused(wrong):
    with pytest.raises(ValueError, match="sets="):
        Mixture([4, 4], wrong, seed=0)
