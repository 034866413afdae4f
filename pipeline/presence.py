"""What one process of a run knows of itself, for the others and for its last words.

The training thread writes here what it does, the watch (`pipeline/watch`) reads it and tells the
other ranks; a wish to stop arrives here from a signal, a file or another rank. Plain state: no
threads, no sockets, no collectives.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# How often a file is looked for: often enough for people, seldom enough for a network file system.
_LOOK_EVERY = 1.0


@dataclass
class Presence:
    """The state of this process; every rank has its own."""

    step: int = 0  # of the plan, the one being done; 0 outside of training
    keys: tuple[str, ...] = ()  # of the records in this rank's part of the step
    beats: int = 0  # grows whenever a unit of work is done
    steady: bool = False  # the first step is done: from here on a unit of work takes seconds
    tell: Callable[[], None] = lambda: None  # the others, where this rank is now
    asked: str | None = None  # who asked for a stop and how; None: nobody
    _files: list[Path] = field(default_factory=list)
    _looked: float = 0.0

    def beat(self) -> None:
        """A step, a micro-batch, a batch of a validation was done."""
        self.beats += 1

    def working_on(self, step: int, keys: Sequence[str] = ()) -> None:
        """The step being done, counted from 1, and its records where they are known already."""
        self.step, self.keys = step, tuple(keys)
        self.beats += 1
        self.tell()  # at once: a rank that is killed says nothing more

    def outside_of_training(self) -> None:
        """What comes now (building, exporting, scoring) has no steps and takes its time."""
        self.step, self.keys, self.steady = 0, (), False

    def obey(self, file: Path, *, own: bool = False) -> bool:
        """From now on a stop is asked for by making `file`; True where an old one was removed.

        One that lies there already asked an earlier start. own: the file is of this start alone,
        so one that lies there asked this start while it was on its way.
        """
        if file in self._files:
            return False
        self._files.append(file)
        if own or not file.exists():
            return False
        file.unlink(missing_ok=True)
        return True

    def stop_asked(self) -> str | None:
        """Who asks this rank for a stop; looks for the files, at most once a second."""
        if self.asked is None and self._files and time.monotonic() - self._looked > _LOOK_EVERY:
            self._looked = time.monotonic()
            self.asked = next((f"the file {each}" for each in self._files if each.exists()), None)
        return self.asked
