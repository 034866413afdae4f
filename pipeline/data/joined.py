"""The shards of several manifests under one numbering, for readers of a mixture."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from pipeline.data.manifest import Manifest, ShardEntry


class Shards(Protocol):
    """Numbered shards with their indexes: a `Manifest`, or several joined."""

    @property
    def shards(self) -> Sequence[ShardEntry]:
        """All entries, in order."""

    @property
    def sizes(self) -> list[int]:
        """Records of each shard."""

    @property
    def retried(self) -> int:
        """How often this process asked a server again."""

    @property
    def unstaged(self) -> int:
        """How many shards this process could not copy to the stage."""

    def where(self, shard: int) -> str:
        """The path or URL of a shard, for messages."""

    def path(self, shard: int) -> Path:
        """The local path of a shard, fetched where it is remote; raises DataError."""

    def index_where(self, shard: int) -> str:
        """The path or URL of a shard's index, for messages."""

    def index_path(self, shard: int) -> Path:
        """The local path of a shard's index; raises as `path`."""


class JoinedManifests:
    """The shards of the first manifest, then those of the second, and so on."""

    def __init__(self, manifests: Sequence[Manifest]) -> None:
        self._manifests = tuple(manifests)
        self.shards = tuple(entry for each in manifests for entry in each.shards)
        self._firsts = [0, *accumulate(len(each.shards) for each in manifests)][:-1]

    @property
    def sizes(self) -> list[int]:
        """Records of each shard."""
        return [entry.records for entry in self.shards]

    @property
    def retried(self) -> int:
        """How often this process asked a server again; sets may share a cache."""
        caches = {id(each.cache): each.retried for each in self._manifests}
        return sum(caches.values())

    @property
    def unstaged(self) -> int:
        """How many shards this process could not copy to the stage; sets may share one."""
        stages = {id(each.stage): each.unstaged for each in self._manifests}
        return sum(stages.values())

    def where(self, shard: int) -> str:
        """The path or URL of a shard, for messages."""
        manifest, number = self._find(shard)
        return manifest.where(number)

    def path(self, shard: int) -> Path:
        """The local path of a shard; see `Manifest.path`."""
        manifest, number = self._find(shard)
        return manifest.path(number)

    def index_where(self, shard: int) -> str:
        """The path or URL of a shard's index, for messages."""
        manifest, number = self._find(shard)
        return manifest.index_where(number)

    def index_path(self, shard: int) -> Path:
        """The local path of a shard's index; see `Manifest.index_path`."""
        manifest, number = self._find(shard)
        return manifest.index_path(number)

    def _find(self, shard: int) -> tuple[Manifest, int]:
        # The last set that starts at or before it: one without shards starts where the next does.
        which = bisect_right(self._firsts, shard) - 1
        return self._manifests[which], shard - self._firsts[which]
