"""Whether the training thread makes progress, seen from another thread of the same process.

Nothing but the loops has to report: the thread's stack is looked at once a second. A thread that
waits for another process stands in the same place of the same code; one that works does not, or
writes a file, or, where that means anything, takes processor time. Workers that load data for it
count too: a slow file system is no standstill while bytes come.
"""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch.utils.data.dataloader as torch_loader

from pipeline.presence import Presence

# Waiting in here is a loop over short waits, whose stack changes although nothing comes.
_POLLING = torch_loader.__file__

# A process that was started to compile or to score: as alive as we are, and to be waited for.
_CHILD = subprocess.__file__

_COLLECTIVES = ("torch/distributed/", "deepspeed/comm/")

_WORKING = 0.2  # of a processor; waiting in short waits takes less

_PROCESSES = Path("/proc")


class Signs:
    """Counts for how long the main thread was seen standing still."""

    def __init__(self, presence: Presence, *, spins: bool) -> None:
        """spins: the thread takes processor time while it waits, as it does for a GPU."""
        self._presence = presence
        self._thread = threading.main_thread().ident or 0
        self._clock = None if spins else time.pthread_getcpuclockid(self._thread)
        self._taken = 0.0
        self._before: object = None
        self.still = 0.0
        self.waits = False

    def look(self, seconds: float) -> None:
        """Takes a look; so much time went by since the last one."""
        frames = list(_frames(sys._current_frames().get(self._thread)))
        files = [each.f_code.co_filename for each in frames]
        stack = tuple((id(each.f_code), each.f_lasti) for each in frames)
        now = (self._presence.beats, stack, _written_and_read(), _moved_by_workers())
        if now != self._before or _CHILD in files or self._computes(seconds):
            self.still = 0.0
        else:
            self.still += seconds
        self._before = now
        self.waits = any(part in each for each in files for part in _COLLECTIVES)

    def _computes(self, seconds: float) -> bool:
        if self._clock is None:
            return False
        before, self._taken = self._taken, time.clock_gettime(self._clock)
        return self._taken - before > _WORKING * seconds


def _frames(innermost: FrameType | None) -> Iterator[FrameType]:
    """The frames from the outermost on, down to where a loop of short waits begins."""
    stack = []
    while innermost is not None:
        stack.append(innermost)
        innermost = innermost.f_back
    for frame in reversed(stack):
        yield frame
        if frame.f_code.co_filename == _POLLING:
            return


def _written_and_read() -> tuple[str, ...]:
    """Bytes that this process has written, and those that came from a disk: a large file grows
    while its writer stands still. Empty where the system does not say."""
    return tuple(each for each in _io("self") if each.startswith(("wchar", "read_bytes")))


def _moved_by_workers() -> tuple[str, ...]:
    """Bytes that this process's children have read and written, whatever from and to."""
    found: list[str] = []
    for each in _PROCESSES.glob("self/task/*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended since
            for child in each.read_text(encoding="ascii").split():
                found += [line for line in _io(child) if line.startswith(("rchar", "wchar"))]
    return tuple(found)


def _io(process: str) -> list[str]:
    """Lines of a process's /proc/io; none where the system does not say."""
    try:
        return (_PROCESSES / process / "io").read_text(encoding="ascii").splitlines()
    except OSError:
        return []
