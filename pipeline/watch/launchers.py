"""Whether the processes that started this rank are still there.

The deepspeed launcher is two processes, the first of which does not pass signals on (0.19): who
ends it ends nothing, and the ranks would train on unseen. So its end counts as a wish to stop.
"""

import os
from pathlib import Path

_DEEPSPEED = b"deepspeed.launcher.launch"


class Launchers:
    """The parent, and under deepspeed the parent's parent."""

    def __init__(self, ranks: int) -> None:
        """ranks: of the run; a single one may have been started by a shell, which may end."""
        self._parent = os.getppid()
        deepspeed = _is_deepspeed(self._parent)
        self._watched = deepspeed or ranks > 1
        self._above = _parent_of(self._parent) if deepspeed else None

    def gone(self) -> str | None:
        """Which of them has ended, in words; None when all are there."""
        if not self._watched:
            return None
        if os.getppid() != self._parent:
            return "the end of the launcher"
        if self._above is not None and _parent_of(self._parent) != self._above:
            return "the end of the deepspeed command"
        return None


def _is_deepspeed(process: int) -> bool:
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
    return _DEEPSPEED in words.replace(b"/", b".")


def _parent_of(process: int) -> int | None:
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])
