"""A small least-recently-used cache with a hook for what it drops; not safe between threads."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class LRU(Generic[K, V]):
    """Keeps the `capacity` values that were used last.

    Unlike functools.lru_cache it belongs to one object and can release what it drops.
    """

    def __init__(self, capacity: int, *, on_drop: Callable[[V], None] | None = None) -> None:
        """Args: capacity: most values kept (>= 1); on_drop: called with each value dropped."""
        self._capacity = capacity
        self._on_drop = on_drop
        self._values: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of `key`, made by `make` when it is not kept."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = make()
        self._values[key] = value
        if len(self._values) > self._capacity:
            self._drop(next(iter(self._values)))
        return value

    def discard(self, key: K) -> None:
        """Drop `key` if it is kept."""
        if key in self._values:
            self._drop(key)

    def clear(self) -> None:
        """Drop everything."""
        while self._values:
            self._drop(next(iter(self._values)))

    def _drop(self, key: K) -> None:
        value = self._values.pop(key)
        if self._on_drop is not None:
            self._on_drop(value)
