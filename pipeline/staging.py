"""Where a rank writes a checkpoint first, before a thread moves its files to the run's folder.

A folder of each rank on its own node, whose path the next start of the same run finds again. Does
not assume that staging and run lie on one file system, nor that the folder is anybody's alone.
"""

import os
import shutil
from pathlib import Path

from pipeline.config import CheckpointsConfig
from pipeline.dist import World
from pipeline.hashes import fingerprint_of

_SPARE = 1.2  # what else writes to the disk meanwhile


def staging_folder(settings: CheckpointsConfig, run: Path, needed: float, world: World) -> Path:
    """The folder of this rank alone; it need not exist.

    Args:
        settings: names a folder of the node, or leaves the choice: $TMPDIR, which clusters point to
            the node's own disk, where that is another file system than the run's with room enough.
        run: the folder that checkpoints are moved to, which exists.
        needed: bytes of a whole checkpoint.
        world: whose node writes its ranks' share of it.
    """
    rank = f"rank-{world.rank:05d}"
    # One name for each user and run: nodes are shared.
    name = f"eim-{os.getuid()}-{fingerprint_of(str(run.resolve()))}"
    share = needed * world.local_size / world.size
    if settings.staging is not None:
        return Path(settings.staging) / name / rank
    temporary = os.environ.get("TMPDIR")
    if temporary and _roomy(Path(temporary), run, share):
        return Path(temporary) / name / rank
    return run / ".staging" / rank


def fresh(folder: Path) -> None:
    """Makes `folder` an empty one that nobody else may enter; raises OSError."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for each in (folder.parent, folder):  # by name could be another user's
        each.chmod(0o700)


def _roomy(temporary: Path, run: Path, needed: float) -> bool:
    try:
        other = temporary.stat().st_dev != run.stat().st_dev
        return other and shutil.disk_usage(temporary).free > _SPARE * needed
    except OSError:
        return False
