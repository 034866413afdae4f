"""Why a run ended: the cause that all ranks agree on, its one line, its exit code.

A failure on one rank brings others down a moment later (broken connections, aborted collectives);
`first_cause` tells the one from the other. Knows nothing of sockets and threads.
"""

import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as torch_dist

from pipeline.errors import UserError

WELL = 0
BUG = 1
USER_ERROR = 2
SIGNALLED = 128  # plus the signal's number, as shells have it

_SHOWN_KEYS = 8

# How gloo, NCCL and DeepSpeed word that another process has gone; they have no class of their own.
_ECHOES = ("connection closed", "connection reset", "broken pipe", "gloo", "nccl", "process group")


@dataclass(frozen=True)
class Place:
    """Which rank, and what it was doing."""

    rank: int
    host: str
    step: int = 0  # 0: outside of training
    keys: tuple[str, ...] = ()  # of the records of its part of the step

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Place":
        """The reverse of `dataclasses.asdict`."""
        return cls(**{**value, "keys": tuple(value["keys"])})

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host})" + (f" at step {self.step}" if self.step else "")


@dataclass(frozen=True)
class Cause:
    """What ended a run, and where."""

    place: Place
    what: str  # one line, as the user reads it
    code: int  # that every rank exits with
    echo: bool = False  # probably but the consequence of another rank's end
    speaks: bool = True  # the rank can tell it itself; else another does
    still: bool = False  # the rank makes no progress: its stacks are wanted
    frozen: bool = False  # nothing is heard of the rank, though it was not seen ending

    def line(self) -> str:
        """The last line that a run prints."""
        if self.code != USER_ERROR:
            return f"error: {self.place}: {self.what}{self._samples()}"
        # What the user can mend is most often the same on all ranks, and rank 0 tells it.
        return (
            f"error: {self.what}" if self.place.rank == 0 else f"error: {self.place}: {self.what}"
        )

    def _samples(self) -> str:
        keys = self.place.keys
        if not keys:
            return ""
        more = len(keys) - _SHOWN_KEYS
        return f"; its samples: {', '.join(keys[:_SHOWN_KEYS])}" + (f", {more} more" * (more > 0))

    def as_json(self) -> dict[str, Any]:
        """What travels to other ranks."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Cause":
        """The reverse of `as_json`."""
        return cls(**{**value, "place": Place.from_json(value["place"])})


def cause_of(error: BaseException, place: Place) -> Cause:
    """The cause that an exception on this rank is."""
    if isinstance(error, UserError):
        return Cause(place, " ".join(str(error).split()), USER_ERROR)
    shortage = _shortage(error)
    if shortage is not None:
        return Cause(place, shortage, BUG)
    text = (str(error).strip().splitlines() or [""])[0]
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return Cause(place, what, BUG, echo=_is_echo(error))


def details_of(error: BaseException) -> str:
    """The traceback, where it says more than the cause's line; else nothing."""
    if isinstance(error, UserError) or _shortage(error) is not None:
        return ""
    return "".join(traceback.format_exception(error))


def first_cause(found: Sequence[Cause]) -> Cause:
    """Of causes in the order in which they were reported: what came first.

    Echoes only where there is nothing else; of ranks that say the same, the first rank.
    """
    known = [each for each in found if not each.echo] or list(found)
    alike = [each for each in known if each.what == known[0].what]
    return min(alike, key=lambda each: each.place.rank)


def _shortage(error: BaseException) -> str | None:
    """What ran out of memory and what helps, as one line; None for other errors."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        wanted = (text.strip().splitlines() or [""])[0].removeprefix("CUDA out of memory. ")
        return (
            f"out of GPU memory ({wanted}); lower micro_batch, set activation_checkpointing=true, "
            "or ds_config=zero3_offload (--plan states what a run needs)"
        )
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate" in text:
        return (
            "out of main memory; lower micro_batch or data.workers, or start fewer ranks on a node "
            "(--plan states what a run needs)"
        )
    return None


def _is_echo(error: BaseException) -> bool:
    if isinstance(error, torch_dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(each in text for each in _ECHOES)
