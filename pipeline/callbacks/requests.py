"""Files by which a user asks a running phase for something: `touch runs/quickstart/SAVE`.

Rank 0 looks, since file systems may show a new file to some ranks later than to others; who acts on
it agrees with all ranks first.
"""

import contextlib
import time
from pathlib import Path

from pipeline.dist import World

_SECONDS = 1.0  # between two looks: a network file system has better things to do


class RequestFile:
    """A file of one name in any of some folders.

    Args:
        name: such as SAVE.
        folders: the phase's and the run's, in the order of looking.
        world: this rank's place.
    """

    def __init__(self, name: str, folders: tuple[Path, ...], world: World) -> None:
        self._paths = [folder / name for folder in folders]
        self._world = world
        self._looked = -_SECONDS

    def seen(self) -> bool:
        """True on rank 0 alone, when the file is there; to be agreed on by all ranks."""
        if not self._world.is_main or time.monotonic() - self._looked < _SECONDS:
            return False
        self._looked = time.monotonic()
        return any(each.exists() for each in self._paths)

    def done(self) -> None:
        """Removes the file, so that it asks once."""
        if self._world.is_main:
            for each in self._paths:
                with contextlib.suppress(OSError):
                    each.unlink(missing_ok=True)
