"""Shards of a shared file system, copied whole to this node's own disk, and read there.

A shard is copied when a process of the node first reads it, so a node holds what its ranks have
read; all its processes share the copies, and so do later jobs. Where one cannot be made the shard
is read where it lies, and that is counted. Removes nothing that was copied before: what a job may
leave on a node's disk is the cluster's rule.
"""

import errno
import hashlib
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from pipeline.data.files import sha256_of

log = logging.getLogger("pipeline")

_SPARE = 0.1  # of the disk, which is left to others: checkpoints on their way, other jobs
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Stage:
    """A folder of a node's own disk."""

    folder: Path
    spare: float = _SPARE  # fraction of the disk
    refused: dict[Path, str] = field(default_factory=dict, compare=False)  # in this process: why

    def copy_of(self, shard: Path, *, size: int, sha256: str | None) -> Path:
        """The copy of a shard, made now where there is none; the shard itself where that fails.

        size: in bytes. sha256: in hex, where it is known; checked once, when the copy is made.
        """
        if shard in self.refused:
            return shard
        try:
            changed = shard.stat().st_mtime_ns
        except OSError:
            return shard  # whoever reads it tells what is wrong
        key = hashlib.sha256(f"{shard.resolve()}\n{size}\n{sha256}\n{changed}".encode()).hexdigest()
        kept = self.folder / f"{key[:24]}-{shard.name[-100:]}"
        try:
            self._open_folder()
            with FileLock(self.folder / f".{kept.name}.lock"):
                if not (kept.is_file() and kept.stat().st_size == size):
                    self._copy(shard, kept, size, sha256)
        except OSError as error:
            self.refused[shard] = error.strerror or str(error)
            log.warning(
                "stage         %s is read where it lies: %s (%s)",
                shard,
                self.refused[shard],
                self.folder,
            )
            return shard
        return kept

    def _open_folder(self) -> None:
        """Ours alone: by its name, on a disk for all, it could be another user's."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.folder.stat().st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "the folder is another user's")

    def _copy(self, shard: Path, kept: Path, size: int, sha256: str | None) -> None:
        """Copies to a name that does not count, and renames when all is right."""
        part = kept.with_name(f".{kept.name}.part")
        if sha256 is None:  # nothing would tell what a killed process has left from other bytes
            part.unlink(missing_ok=True)
        elif part.exists():
            with part.open("rb+") as file:
                file.truncate(min(size, part.stat().st_size))
        try:
            for last in (False, True):
                self._append(shard, part, size)
                if sha256 is None or sha256_of(part) == sha256:
                    break
                part.unlink()
                if last:
                    raise OSError(errno.EIO, "its SHA-256 is not the manifest's")
        except OSError:
            part.unlink(missing_ok=True)
            raise
        found = shard.stat()
        os.utime(part, ns=(found.st_atime_ns, found.st_mtime_ns))  # a reader may compare it
        part.replace(kept)

    def _append(self, shard: Path, part: Path, size: int) -> None:
        """Copies what `part` does not have yet."""
        done = part.stat().st_size if part.exists() else 0
        disk = shutil.disk_usage(self.folder)
        if disk.free - (size - done) < self.spare * disk.total:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with shard.open("rb") as source, part.open("ab") as target:
            source.seek(done)
            shutil.copyfileobj(source, target, _BLOCK)
            target.flush()
            os.fsync(target.fileno())
        if part.stat().st_size != size:
            raise OSError(errno.EIO, f"{part.stat().st_size} bytes, but the manifest says {size}")
