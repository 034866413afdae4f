"""The plan's promises, for random sizes, seeds, batches, lanes, windows and ranks."""

import pickle
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.plan import Plan, arrange

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=12)
plans = st.fixed_dictionaries(
    {
        "shard_sizes": sizes,
        "seed": st.integers(0, 2**40),
        "global_batch": st.integers(1, 48),
        "lanes": st.integers(1, 70),
        "window": st.integers(1, 30),
    }
)
layouts = st.fixed_dictionaries(
    {
        "ranks": st.integers(1, 16),
        "ranks_per_node": st.integers(1, 8),
        "micro_batch": st.integers(1, 20),
    }
)


def epoch_of(plan, epoch):
    return [plan.step(epoch, k) for k in range(plan.steps_per_epoch)]


def every_item(shard_sizes):
    return Counter((s, r) for s, size in enumerate(shard_sizes) for r in range(size))


def as_counter(steps):
    return Counter((int(s), int(r)) for step in steps for s, r in step)


@given(plans, st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_every_item_exactly_once_an_epoch(kwargs, epoch):
    plan = Plan(**kwargs)
    assert as_counter(epoch_of(plan, epoch)) == every_item(kwargs["shard_sizes"])
    assert plan.records == sum(kwargs["shard_sizes"])


@given(plans)
@settings(max_examples=60, deadline=None)
def test_all_but_the_last_batch_are_full(kwargs):
    steps = epoch_of(Plan(**kwargs), 0)
    assert all(len(step) == kwargs["global_batch"] for step in steps[:-1])
    assert all(0 < len(step) <= kwargs["global_batch"] for step in steps[-1:])


@given(plans, st.data())
@settings(max_examples=60, deadline=None)
def test_any_step_is_the_same_in_a_fresh_plan(kwargs, data):
    plan = Plan(**kwargs)
    if plan.steps_per_epoch == 0:
        return
    whole = epoch_of(plan, 1)
    start = data.draw(st.integers(0, plan.steps_per_epoch - 1))
    fresh = Plan(**kwargs)
    for k in range(start, plan.steps_per_epoch):
        np.testing.assert_array_equal(fresh.step(1, k), whole[k])


@given(plans, layouts, st.integers(0, 2**20))
@settings(max_examples=80, deadline=None)
def test_ranks_only_share_out_a_batch_that_is_decided(kwargs, layout, length_seed):
    lengths_of = np.random.default_rng(length_seed)
    for step in epoch_of(Plan(**kwargs), 0):
        lengths = lengths_of.integers(0, 300, len(step))
        dealt = arrange(lengths, **layout)
        assert len(dealt) == layout["ranks"]
        assert len({len(chunks) for chunks in dealt}) == 1
        chunks = [chunk for rank in dealt for chunk in rank]
        assert all(len(chunk) <= layout["micro_batch"] for chunk in chunks)
        assert all(chunk.dtype == np.int64 for chunk in chunks)
        positions = np.concatenate(chunks)
        np.testing.assert_array_equal(np.sort(positions), np.arange(len(step)))


@given(layouts, st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_no_more_micro_batches_than_the_fullest_node_needs(layout, records):
    dealt = arrange(np.ones(records, dtype=np.int64), **layout)
    smallest_node = layout["ranks"] % layout["ranks_per_node"] or layout["ranks_per_node"]
    smallest_node = min(smallest_node, layout["ranks"])
    share = -(-records * smallest_node // layout["ranks"])
    assert len(dealt[0]) <= -(-share // (smallest_node * layout["micro_batch"])) + 1


def test_nodes_own_neighbouring_positions():
    dealt = arrange(np.arange(32), micro_batch=4, ranks=4, ranks_per_node=2)
    first = np.concatenate([chunk for rank in dealt[:2] for chunk in rank])
    assert sorted(first) == list(range(16))


def test_ranks_work_on_similar_lengths_and_get_similar_loads():
    lengths = np.random.default_rng(0).integers(1, 1000, 256)
    dealt = arrange(lengths, micro_batch=8, ranks=4, ranks_per_node=4)
    loads = [sum(int(lengths[chunk].sum()) for chunk in chunks) for chunks in dealt]
    assert max(loads) < 1.1 * min(loads)
    for m in range(len(dealt[0])):
        together = np.concatenate([chunks[m] for chunks in dealt])
        assert np.ptp(lengths[together]) < 250


def test_epochs_and_seeds_differ():
    kwargs = {"shard_sizes": [50] * 6, "global_batch": 16, "lanes": 8, "window": 20}
    orders = [
        np.concatenate(epoch_of(Plan(seed=s, **kwargs), e)) for s, e in [(0, 0), (0, 1), (1, 0)]
    ]
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])


def test_lanes_are_the_common_divisor_and_the_step_is_in_lane_order():
    plan = Plan([960], seed=0, global_batch=48, lanes=64, window=7)
    assert plan.lanes == 16
    lane = plan.step(0, 3)[:, 1] // 60
    assert list(lane) == [i // 3 for i in range(48)]


def test_a_lane_is_shuffled_within_windows_only():
    plan = Plan([100], seed=0, global_batch=10, lanes=1, window=20)
    read = np.concatenate(epoch_of(plan, 0))[:, 1]
    assert list(read) != list(range(100))
    for first in range(0, 100, 20):
        assert sorted(read[first : first + 20]) == list(range(first, first + 20))


def test_sequential_reads_in_order_once():
    plan = Plan([3, 0, 4], seed=5, global_batch=5, sequential=True)
    assert plan.step(0, 0).tolist() == [[0, 0], [0, 1], [0, 2], [2, 0], [2, 1]]
    assert plan.step(0, 1).tolist() == [[2, 2], [2, 3]]
    assert plan.steps_per_epoch == 2


def test_a_huge_plan_does_not_hold_its_records():
    tracemalloc.start()
    plan = Plan(np.full(100_000, 10_000), seed=0, global_batch=4096)
    first = plan.step(3, 0)
    last = plan.step(3, plan.steps_per_epoch - 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.records == 10**9
    assert first.shape == (4096, 2) and first.dtype == np.int64
    assert len(last) == 10**9 % 4096
    assert peak < 20_000_000  # bytes: some vectors over the shards; one over the records is 8e9


def test_a_plan_travels_to_a_worker():
    plan = Plan([40, 50], seed=0, global_batch=8)
    plan.step(0, 1)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(plan)).step(0, 2), plan.step(0, 2))


def test_wrong_arguments_are_refused():
    plan = Plan([4], seed=0, global_batch=2)
    for epoch, k in [(0, 2), (0, -1), (-1, 0)]:
        with pytest.raises(IndexError):
            plan.step(epoch, k)
    with pytest.raises(ValueError, match="global_batch"):
        Plan([4], seed=0, global_batch=0)
    with pytest.raises(ValueError, match="seed"):
        Plan([4], seed=-1, global_batch=1)
    with pytest.raises(ValueError, match="ranks"):
        arrange(np.ones(3, dtype=np.int64), micro_batch=1, ranks=0, ranks_per_node=1)
