"""Where the readers meet a file system: files opened, files read by offset, files read whole.

The one place to stand between the two: tests put slow, failing and lying disks here. It promises
nothing about a file but that all bytes asked for came; patience is the callers' (`files.Patience`).
"""

import os
from pathlib import Path


def open_file(path: Path) -> int:
    """Open a file for `read_at`; returns its descriptor, which other programs do not inherit."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def read_at(descriptor: int, offset: int, size: int) -> bytes:
    """Read exactly `size` bytes from `offset`.

    One `pread` returns 2 GiB at most, and less on a signal.

    Raises:
        OSError: the system says so, or the file ends before.
    """
    parts = []
    while size > 0:
        part = os.pread(descriptor, size, offset)
        if not part:
            raise OSError(f"the file ends {size} bytes too early")
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return b"".join(parts)


def read_whole(path: Path) -> bytes:
    """Read a small file."""
    return path.read_bytes()
