"""The signals that ask for a stop: the first is a wish, a second one ends the process at once.

The system's handler only writes the signal's number into a pipe, which works while the training
thread waits in C; the watch reads it. Children that are forked later neither write there nor end
by signals that were meant for the run: launchers and Slurm send them to every process.
"""

import signal
import time
from types import FrameType

from pipeline.presence import Presence

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)

# One wish may arrive several times: from a process group, and from the launcher that is in it.
_ONE_WISH_SECONDS = 2.0


class Signals:
    """Takes over the signals of this process, for good."""

    def __init__(self, knocker: int, presence: Presence, place: str) -> None:
        """knocker: the pipe's end. place: this rank, in words. Call it in the main thread."""
        self._presence, self._place = presence, place
        self._first: float | None = None
        signal.set_wakeup_fd(knocker, warn_on_full_buffer=False)
        for each in STOPPING:
            signal.signal(each, _noted)

    def read(self, knocks: bytes) -> signal.Signals | None:
        """What came through the pipe; returns the signal that ends the process at once, if any."""
        for number in knocks:
            if number not in STOPPING:
                continue
            name = signal.Signals(number)
            now = time.monotonic()
            if self._first is None:
                self._first = now
                if self._presence.asked is None:
                    self._presence.asked = f"{name.name} at {self._place}"
            elif now - self._first > _ONE_WISH_SECONDS:
                return name
        return None

    def ignore(self) -> None:
        """From now on signals change nothing: all is done."""
        for each in STOPPING:
            signal.signal(each, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)


def leave_signals_to_the_parent(worker: int = 0) -> None:
    """In a process that was forked from a rank: it ends when its work does, or with its parent.

    Also the `worker_init_fn` of data loaders, since torch has a handler of its own.
    """
    signal.set_wakeup_fd(-1)
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)


def _noted(number: int, frame: FrameType | None) -> None:
    """The pipe has the signal already."""
