"""Where a rank writes a checkpoint first, before a thread moves its files to the run's folder.

A folder of each rank on its own node, whose path the next start of the same run finds again. Does
not assume that staging and run lie on one file system, nor that the folder is anybody's alone.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import CheckpointsConfig
from pipeline.durable import existing
from pipeline.hashes import fingerprint_of

_SPARE = 1.2  # for what else writes to the disk meanwhile


def staging_places(settings: CheckpointsConfig, run: Path) -> list[Path]:
    """The folders of this node that may be used for checkpoints on their way to `run`, best first.

    The one that the recipe names; else $TMPDIR, which clusters point to the node's own disk, and a
    folder of the run. Each holds nothing but a folder for each rank.
    """
    # One name for each user and run: nodes are shared.
    name = f"eim-{os.getuid()}-{fingerprint_of(str(run.resolve()))}"
    if settings.staging is not None:
        return [Path(settings.staging) / name]
    temporary = os.environ.get("TMPDIR")
    return [*([Path(temporary) / name] if temporary else []), run / ".staging"]


def choose_place(places: Sequence[Path], run: Path, needed: float) -> Path:
    """The first of the places on another file system than `run` with room enough, or the last.

    needed: bytes that the ranks of this node will write.
    """
    return next((each for each in places[:-1] if _roomy(each, run, needed)), places[-1])


def fresh(folder: Path) -> None:
    """Makes `folder` an empty one that nobody else may enter; raises OSError."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for each in (folder.parent, folder):  # by name could be another user's
        each.chmod(0o700)


def _roomy(place: Path, run: Path, needed: float) -> bool:
    try:
        disk = place.parent
        other = disk.is_dir() and disk.stat().st_dev != existing(run).stat().st_dev
        return other and shutil.disk_usage(disk).free > _SPARE * needed
    except OSError:
        return False
