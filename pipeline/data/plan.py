"""Which record goes into which step: a pure function of shard sizes, seed, batch, lanes and window.

It does no I/O, needs no torch, and does not know ranks, workers, micro-batches or the tokenizer:
those only `arrange` a global batch that is already decided. Nothing here grows with the number of
records, so any step of any epoch costs the same as the first.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.lru import LRU
from pipeline.data.mixture import Mixture

Ints = NDArray[np.int64]

# First word of the random stream: SeedSequence ignores trailing zeros, so streams of different
# purpose (`mixture.py` has the others) must differ in it, and all have the same length.
_WINDOW_STREAM = 2


class Plan:
    """The order in which the records of a split are read.

    Permuted shards (anew each epoch) are concatenated virtually and cut into `lanes` equal ranges;
    each lane is shuffled in windows; step k takes the next global_batch/lanes records of every
    lane. Every record comes exactly once an epoch (in a mixture: as often as the weight of its set
    says, see `mixture.py`), and only the last batch may be short.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        *,
        seed: int,
        global_batch: int,
        lanes: int = 64,
        window: int = 1024,
        sequential: bool = False,
        sets: Sequence[tuple[int, float]] = (),
    ) -> None:
        """Describe the order; nothing is computed per record.

        Args:
            shard_sizes: records of each shard; zeros are allowed.
            seed: non-negative; the order is a function of (seed, epoch).
            global_batch: records of a step, over all ranks.
            lanes: parallel streams; where it does not divide `global_batch`, the greatest common
                divisor of both is used instead.
            window: records that are shuffled together within a lane.
            sequential: read in order without shuffling (evaluation); lanes and window are unused.
            sets: (number of shards, weight) of each set of a mixture, in the order of
                `shard_sizes`; empty for one set that is read once an epoch.

        Raises:
            ValueError: a size is negative, a count or weight is not positive, or the shards of the
                sets do not add up.
        """
        if min(global_batch, lanes, window) < 1:
            raise ValueError(f"{global_batch=}, {lanes=} and {window=} must be at least 1")
        self._row = Mixture(shard_sizes, sets, seed=seed, shuffled=not sequential)
        self._seed = seed
        self._window = window
        self._sequential = sequential
        self.global_batch = global_batch
        self.lanes = 1 if sequential else math.gcd(lanes, global_batch)
        self.records = self._row.records
        self.steps_per_epoch = -(-self.records // global_batch)
        # A step touches one window of every lane, or two at a window's edge.
        self._windows: LRU[tuple[int, int, int], Ints] = LRU(2 * self.lanes)

    def step(self, epoch: int, k: int) -> Ints:
        """Return the records of one step.

        Args:
            epoch: >= 0.
            k: the step within the epoch, 0 <= k < steps_per_epoch.

        Returns:
            (n, 2) of (shard, record in shard) in lane order, n = global_batch, fewer in the
            epoch's last step.

        Raises:
            IndexError: there is no such epoch or step.
        """
        if epoch < 0 or not 0 <= k < self.steps_per_epoch:
            raise IndexError(f"{epoch=} {k=}: an epoch has {self.steps_per_epoch} steps")
        if self._sequential:
            first = k * self.global_batch
            last = min(first + self.global_batch, self.records)
            return self._row.locate(0, np.arange(first, last, dtype=np.int64))
        take = self.global_batch // self.lanes
        parts = [self._lane(epoch, lane, k * take, take) for lane in range(self.lanes)]
        return self._row.locate(epoch, np.concatenate(parts))

    def records_by_set(self, items: Ints) -> list[int]:
        """How many of a step's items (n, 2) belong to each set of the mixture."""
        return self._row.records_by_set(items)

    def _lane(self, epoch: int, lane: int, first: int, count: int) -> Ints:
        """Virtual positions of `count` items of a lane (fewer at its end), from its `first`."""
        start = lane * self.records // self.lanes
        length = (lane + 1) * self.records // self.lanes - start
        stop = min(first + count, length)
        parts = [np.empty(0, dtype=np.int64)]
        for number in range(first // self._window, -(-stop // self._window)):
            base = number * self._window
            order = self._window_order(epoch, lane, number, min(self._window, length - base))
            parts.append(start + base + order[max(first - base, 0) : stop - base])
        return np.concatenate(parts)

    def _window_order(self, epoch: int, lane: int, number: int, size: int) -> Ints:
        """The permutation of one window (size,), kept while its lane is inside it."""

        def draw() -> Ints:
            words = [self._seed, _WINDOW_STREAM, epoch, lane, number]
            return np.random.default_rng(words).permutation(size).astype(np.int64)

        return self._windows.get((epoch, lane, number), draw)


def items_in_order(plan: Plan) -> list[tuple[int, int]]:
    """One pass over a plan as (shard, record) pairs."""
    steps = (plan.step(0, k) for k in range(plan.steps_per_epoch))
    return [(int(shard), int(record)) for step in steps for shard, record in step]


def arrange(
    lengths: NDArray[np.integer], *, micro_batch: int, ranks: int, ranks_per_node: int
) -> list[list[Ints]]:
    """Cut a global batch into micro-batches and deal them to the ranks.

    A node owns a contiguous range of the batch (so it reads only its own lanes). Inside a node the
    records are sorted by length, longest first, so that micro-batches need little padding and a
    memory shortage shows at once; ranks work on chunks of similar length at the same time.

    Args:
        lengths: (n,) size of each record's text in any unit, in lane order.
        micro_batch: most records of one micro-batch.
        ranks: number of ranks, >= 1; need divide nothing.
        ranks_per_node: ranks that share a node; the last node may have fewer.

    Returns:
        [rank][micro-batch] -> positions into the batch. Every position comes once; all ranks have
        the same number of micro-batches, empty ones where a rank has nothing left.
    """
    if min(micro_batch, ranks, ranks_per_node) < 1:
        raise ValueError(f"{micro_batch=}, {ranks=} and {ranks_per_node=} must be at least 1")
    total = len(lengths)
    nodes = [(a, min(a + ranks_per_node, ranks)) for a in range(0, ranks, ranks_per_node)]
    ranges = [(a * total // ranks, b * total // ranks) for a, b in nodes]
    micro_batches = max(
        -(-(stop - start) // ((b - a) * micro_batch))
        for (a, b), (start, stop) in zip(nodes, ranges, strict=True)
    )
    result: list[list[Ints]] = []
    for (a, b), (start, stop) in zip(nodes, ranges, strict=True):
        own = np.asarray(lengths[start:stop], dtype=np.int64)
        dealt = _deal(own, ranks=b - a, micro_batches=micro_batches)
        result.extend([chunk + start for chunk in chunks] for chunks in dealt)
    return result


def _deal(lengths: Ints, *, ranks: int, micro_batches: int) -> list[list[Ints]]:
    """One node's records to [rank][micro-batch]: the heaviest chunk to the rank with least."""
    order = np.argsort(-lengths, kind="stable").astype(np.int64)
    chunks = np.array_split(order, ranks * micro_batches) if micro_batches else []
    loads = np.zeros(ranks, dtype=np.int64)
    dealt: list[list[Ints]] = [[] for _ in range(ranks)]
    for m in range(micro_batches):
        group = chunks[m * ranks : (m + 1) * ranks]
        # Cost is what is computed: every record padded to the longest of its chunk. A record
        # costs at least one unit, so that texts of length zero are spread as well.
        costs = [len(c) * (1 + int(lengths[c[0]])) if len(c) else 0 for c in group]
        heaviest_first = np.argsort(-np.asarray(costs), kind="stable")
        for rank, i in zip(np.argsort(loads, kind="stable"), heaviest_first, strict=True):
            dealt[rank].append(group[i])
            loads[rank] += costs[i]
    return dealt
