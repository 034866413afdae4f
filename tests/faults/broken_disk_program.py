"""A program for several ranks: a stage on a disk that is slow and fails now and then.

    deepspeed tests/faults/broken_disk_program.py PHASE KEY=VALUE ...

Every 7th read fails with EIO, every 3rd opening with ESTALE, every 5th read takes 50 ms longer;
what is asked for again comes. Only the reading of data is concerned (`pipeline/data/disk.py`).
"""

import errno
import itertools
import os
import sys
import time
from pathlib import Path

from pipeline.config import Config
from pipeline.data import disk
from pipeline.dist import World
from pipeline.run import run_phase
from pipeline.stage import run_stage


def break_disk() -> None:
    """Puts the faults between the readers and the real disk, here and in forked processes."""
    read_at, open_file = disk.read_at, disk.open_file
    reads, openings = itertools.count(1), itertools.count(1)

    def slow_and_failing(descriptor: int, offset: int, size: int) -> bytes:
        number = next(reads)
        if number % 7 == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if number % 5 == 0:
            time.sleep(0.05)
        return read_at(descriptor, offset, size)

    def stale(path: Path) -> int:
        if next(openings) % 3 == 0:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return open_file(path)

    disk.read_at, disk.open_file = slow_and_failing, stale


def main(config: Config, world: World) -> None:
    """What every rank does."""
    break_disk()
    run_phase(config, phase, world)


if __name__ == "__main__":
    phase = next(each for each in sys.argv[1:] if not each.startswith("--"))
    run_stage(main, [each for each in sys.argv[1:] if each != phase])
