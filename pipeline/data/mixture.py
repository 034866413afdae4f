"""The records of an epoch in one row: sets of shards, repeated by their weights and interleaved.

Pure like the plan that cuts this row into steps: it knows shard sizes, weights and a seed, and does
no I/O. A position becomes a record only when it is asked for, so memory grows with shards.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.lru import LRU

Ints = NDArray[np.int64]

# First words of the random streams, apart from those of `plan.py`.
_SHARD_STREAM = 1
_FRACTION_STREAM = 3


class Mixture:
    """The epoch's row of records over all sets; in every stretch of it they are in proportion."""

    def __init__(
        self,
        shard_sizes: Sequence[int] | Ints,
        sets: Sequence[tuple[int, float]] = (),
        *,
        seed: int,
        shuffled: bool = True,
    ) -> None:
        """Describe the row.

        Args:
            shard_sizes: records of each shard, the sets' shards one after the other.
            sets: (number of shards, weight) of each set; empty for one set of weight 1. An epoch
                holds round(weight * records) records of a set: every record floor(weight) times,
                and a part of them, another one each epoch, once more.
            seed: of the order of the shards.
            shuffled: False leaves the shards as they are.

        Raises:
            ValueError: a size is negative, a weight is not positive, or the counts do not add up.
        """
        sizes = np.asarray(shard_sizes, dtype=np.int64).reshape(-1)
        sets = sets or [(len(sizes), 1.0)]
        if seed < 0 or bool((sizes < 0).any()) or any(weight <= 0 for _, weight in sets):
            raise ValueError(f"{seed=}, a shard size or a weight of {sets=} is below its range")
        firsts = np.cumsum([0, *(shards for shards, _ in sets)])
        if firsts[-1] != len(sizes):
            raise ValueError(f"{sets=} do not add up to {len(sizes)} shards")
        self._firsts: Ints = firsts[:-1]
        self._sets = [
            _WeightedSet(sizes[first : first + shards], weight, number, seed, shuffled)
            for number, (first, (shards, weight)) in enumerate(zip(firsts, sets, strict=False))
        ]
        self.records = sum(each.records for each in self._sets)

    def locate(self, epoch: int, positions: Ints) -> Ints:
        """Positions (n,) of the epoch's row to (n, 2) of (shard, record in shard)."""
        result = np.empty((len(positions), 2), dtype=np.int64)
        for number, (where, inside) in enumerate(self._share_out(positions)):
            result[where] = self._sets[number].locate(epoch, inside)
            result[where, 0] += self._firsts[number]
        return result

    def records_by_set(self, items: Ints) -> list[int]:
        """How many of the items (n, 2) of (shard, record) belong to each set."""
        number = np.searchsorted(self._firsts, items[:, 0], side="right") - 1
        return [int(count) for count in np.bincount(number, minlength=len(self._sets))]

    def _share_out(self, positions: Ints) -> list[tuple[Ints, Ints]]:
        """For each set, which of the positions are its own, and their places in the set's row.

        The last set is laid between all before it as Bresenham draws a line: of the first x places
        floor(x * before / all) are theirs. The same again for those before it.
        """
        found: list[tuple[Ints, Ints]] = []
        where, left = np.arange(len(positions)), positions
        total = self.records
        for each in reversed(self._sets[1:]):
            before = total - each.records
            # Python's integers: the product passes 64 bits from three billion records on.
            exact = left.astype(object)
            theirs = (exact * before // max(total, 1)).astype(np.int64)
            next_ = ((exact + 1) * before // max(total, 1)).astype(np.int64)
            own = next_ == theirs
            found.append((where[own], left[own] - theirs[own]))
            where, left, total = where[~own], theirs[~own], before
        return [(where, left), *reversed(found)]


class _WeightedSet:
    """One set's records of an epoch in a row: whole passes over permuted shards, then a fraction.

    The fraction is a stretch of the shards in one order of the seed's, and starts where that of the
    epoch before ended. So an epoch has no record of it twice, all records come equally often over
    the epochs, and the shards outside the stretch need not be read (or fetched) for it.
    """

    def __init__(self, sizes: Ints, weight: float, number: int, seed: int, shuffled: bool) -> None:
        self._sizes, self._number, self._seed, self._shuffled = sizes, number, seed, shuffled
        self._once = int(sizes.sum())
        self.records = round(weight * self._once)
        self._passes, self._fraction = divmod(self.records, max(self._once, 1))
        # A step reads from all passes; twice that, for whoever looks at two epochs by turns.
        self._orders: LRU[tuple[int, int, int], tuple[Ints, Ints]] = LRU(2 * self._passes + 2)

    def locate(self, epoch: int, positions: Ints) -> Ints:
        """Positions (n,) of the set's row to (n, 2) of (shard in set, record in shard)."""
        passes, inside = np.divmod(positions, max(self._once, 1))
        result = np.empty((len(positions), 2), dtype=np.int64)
        for number in map(int, np.unique(passes)):
            here = passes == number
            if number < self._passes:
                order, ends = self._order(_SHARD_STREAM, epoch, number)
                places = inside[here]
            else:
                order, ends = self._order(_FRACTION_STREAM, 0, 0)
                places = (inside[here] + epoch * self._fraction) % self._once
            slot = np.searchsorted(ends, places, side="right")
            shards = order[slot]
            result[here, 0] = shards
            result[here, 1] = places - (ends[slot] - self._sizes[shards])
        return result

    def _order(self, stream: int, epoch: int, number: int) -> tuple[Ints, Ints]:
        """A permutation of the shards and the running total of their sizes, both (shards,)."""

        def draw() -> tuple[Ints, Ints]:
            order = np.arange(len(self._sizes), dtype=np.int64)
            if self._shuffled:
                words = [self._seed, stream, epoch, self._number, number]
                order = np.random.default_rng(words).permutation(order)
            return order, np.cumsum(self._sizes[order])

        return self._orders.get((stream, epoch, number), draw)
