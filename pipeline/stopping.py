"""Stopping in good order: all ranks agree, at a place where nothing half-made is left behind.

A wish to stop may reach one rank alone (a signal, the file `STOP`). The functions here are called
by all ranks at the same places: between steps, between batches of a validation, between phases.
"""

from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

from pipeline.dist import World, agree_any, gather_json, sum_over_ranks
from pipeline.errors import DataError

T = TypeVar("T")

# In the run's folder; an old one is removed by the next start.
STOP_FILE = "STOP"

# A variable with the path of a stop file that is of one start alone: a job script's.
OWN_STOP_FILE = "EIM_STOP_FILE"


class Stopped(Exception):  # noqa: N818 - not an error
    """A stop was asked for; the message says by whom. What is done is kept by who catches it."""


def agreed_stop(world: World) -> str | None:
    """Who asked any of the ranks for a stop, the same on all; None: nobody. All ranks call it."""
    asked = world.presence.stop_asked()
    if not agree_any(asked is not None, world):
        return None
    wishes: list[str | None] = gather_json(asked, world)
    agreed = next(each for each in wishes if each is not None)
    world.presence.asked = agreed
    return agreed


def stop_if_asked(world: World) -> None:
    """Raises Stopped on all ranks where one was asked for; all ranks call it."""
    asked = agreed_stop(world)
    if asked is not None:
        raise Stopped(asked)


def stoppable(batches: Iterable[T], world: World) -> Iterator[T]:
    """The same batches, of which all ranks have equally many.

    Raises Stopped once a stop is asked for, and DataError where a rank's next batch could not be
    had: both on all ranks.
    """
    iterator = iter(batches)
    while True:
        batch, fault = _next(iterator)
        if batch is None and fault is None:
            return
        asked, faulty = sum_over_ranks(
            [world.presence.stop_asked() is not None, fault is not None], world
        )
        if asked or faulty:
            if isinstance(iterator, Generator):
                iterator.close()  # ends its workers now, not whenever the exception is forgotten
            _raise_first(fault, world)
            stop_if_asked(world)
        assert batch is not None
        yield batch
        world.presence.beat()


def _next(iterator: Iterator[T]) -> tuple[T | None, str | None]:
    try:
        return next(iterator, None), None
    except DataError as error:
        return None, str(error)


def _raise_first(fault: str | None, world: World) -> None:
    first = next((each for each in gather_json(fault, world) if each is not None), None)
    if first is not None:
        raise DataError(first)
