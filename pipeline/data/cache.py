"""Files of servers, fetched whole into a bounded folder of this machine, and read there.

Any number of processes may share the folder; all that they know of each other lies in it. What is
used least recently makes room for what comes; a file that is open meanwhile stays readable. Does
not know what the files hold, nor how a server is asked (`remote.py`).
"""

import hashlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

from filelock import FileLock, Timeout

from pipeline.config import RemoteConfig
from pipeline.data import remote
from pipeline.data.files import make_folder, sha256_of
from pipeline.errors import DataError

T = TypeVar("T")

DEFAULT_LIMIT = 100 * 10**9  # bytes
_OURS = re.compile(r"[0-9a-f]{24}-")  # whatever else lies in the folder is not touched
_POLL_SECONDS = 0.05


def cache_of(config: RemoteConfig) -> "ShardCache":
    """The cache that a recipe's keys describe."""
    folder = Path(config.cache).expanduser() if config.cache else default_folder()
    return ShardCache(folder, int(config.cache_gb * 1e9), (*remote.SCHEMES, *config.schemes))


def default_folder() -> Path:
    """`eim` in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eim"


@dataclass(frozen=True)
class ShardCache:
    """A folder that holds what was fetched last, `limit` bytes at most, downloads included.

    (A download whose length the server does not say counts when it has come.)
    """

    folder: Path = field(default_factory=default_folder)
    limit: int = DEFAULT_LIMIT  # bytes
    schemes: tuple[str, ...] = remote.SCHEMES
    tries: int = 5
    wait: float = 1.0  # seconds before the second try, doubled for each that follows
    retried: list[str] = field(default_factory=list, compare=False)  # by this process's threads

    def fetch(
        self, url: str, *, size: int | None = None, sha256: str | None = None, version: str = ""
    ) -> Path:
        """The local path of a remote file, which is there whole and is the one expected.

        The file may be evicted by the next fetch of any process: open it at once, and fetch again
        should it be gone. Open, it stays readable.

        Args:
            url: of a file, with one of the schemes.
            size: its bytes, where they are known.
            sha256: its hash (hex), where it is known; checked after each download.
            version: tells apart what lay at this address at different times, where no hash does.

        Raises:
            ConfigError: the scheme is not allowed, or its package is not installed.
            DataError: it cannot be fetched after some tries, or is not the one expected, or is
                larger than the cache.
        """
        remote.checked_place(url, self.schemes)
        key = hashlib.sha256(f"{url}\n{sha256 or ''}\n{version}".encode()).hexdigest()[:24]
        kept = self.folder / f"{key}-{PurePosixPath(url).name[-100:]}"
        make_folder(self._locks)
        try:
            if _use(kept, size):
                return kept
            with FileLock(self._lock_of(kept.name)):
                if not _use(kept, size):  # another process may have fetched it meanwhile
                    self._patiently(url, lambda: self._download(url, kept, size, sha256))
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot be used as cache ({error.strerror}); name another folder "
                "with the key cache"
            ) from None  # the reader tries again where an OSError is the cause
        return kept

    def read(self, url: str) -> bytes:
        """The content of a small remote file, never from the cache; raises as `fetch`."""
        remote.checked_place(url, self.schemes)
        return self._patiently(url, lambda: remote.read(url))

    def size(self, url: str) -> int | None:
        """The bytes of a remote file, None where the server does not say; raises as `fetch`."""
        remote.checked_place(url, self.schemes)
        return self._patiently(url, lambda: remote.size(url))

    @property
    def _locks(self) -> Path:
        return self.folder / "locks"

    def _lock_of(self, name: str) -> Path:
        return self._locks / f"{name}.lock"

    def _counting(self) -> FileLock:
        """Held while what the folder holds is counted, evicted or renamed."""
        return FileLock(self._locks / "counting")

    def _patiently(self, url: str, action: Callable[[], T]) -> T:
        """Tries again after a fault of the network; some answers are final."""
        cause = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
                self.retried.append(url)
            try:
                return action()
            except OSError as error:
                cause = error.strerror or str(error)
                if isinstance(error, (FileNotFoundError, PermissionError)):
                    break
        raise DataError(
            f"{url}: cannot be fetched ({cause}); check the address, your access to it, the "
            f"network, and the room in {self.folder}, then run again"
        )

    def _download(self, url: str, kept: Path, size: int | None, sha256: str | None) -> None:
        """Fetches to a name that does not count, and renames when all is right."""
        expected = size if size is not None else remote.size(url)
        part = self.folder / f"{kept.name}.{expected or 0}.part"
        self._reserve(url, part, expected or 0)
        try:
            remote.download(url, part)
            _check(part, size, sha256)
            if expected is None:  # only now is it known what it takes
                self._make_room(part, part.stat().st_size)
            with self._counting():  # whoever counts must not miss it under both names
                part.replace(kept)
        finally:
            part.unlink(missing_ok=True)

    def _reserve(self, url: str, part: Path, size: int) -> None:
        """Returns when there is room for `size` bytes, which `part` stands for from then on."""
        if size > self.limit:
            raise DataError(
                f"{url}: {size / 1e9:.3g} GB, but the cache {self.folder} may hold "
                f"{self.limit / 1e9:.3g} GB; raise cache_gb"
            )
        while not self._make_room(part, size):
            time.sleep(_POLL_SECONDS)  # other downloads fill the cache; they end, or fail

    def _make_room(self, part: Path, size: int) -> bool:
        """Evicts what was used least recently; False where other downloads leave no room."""
        with self._counting():
            kept: list[tuple[int, int, Path]] = []
            coming = 0
            for path in self.folder.iterdir():
                if not _OURS.match(path.name):
                    continue
                if path.suffix == ".part":
                    coming += 0 if path == part else self._reserved(path)
                else:
                    found = path.stat()  # only the holder of this lock removes it
                    kept.append((found.st_mtime_ns, found.st_size, path))
            if coming + size > self.limit:
                return False
            used = sum(bytes_ for _, bytes_, _ in kept)
            for _, bytes_, path in sorted(kept):
                if used + coming + size <= self.limit:
                    break
                path.unlink()
                used -= bytes_
            part.touch()
            return True

    def _reserved(self, part: Path) -> int:
        """Bytes that another process's download takes; what a killed one left is removed."""
        name, size, _ = part.name.rsplit(".", 2)
        try:
            with FileLock(self._lock_of(name), timeout=0):
                part.unlink(missing_ok=True)
        except Timeout:
            return int(size)
        return 0


def _use(kept: Path, size: int | None) -> bool:
    """Marks a file as used now; False where it is not there, or not of the expected size."""
    try:
        os.utime(kept)
        return size is None or kept.stat().st_size == size
    except FileNotFoundError:
        return False


def _check(part: Path, size: int | None, sha256: str | None) -> None:
    """Raises OSError for another size or hash: the transfer may have gone wrong."""
    found = part.stat().st_size
    if size is not None and found != size:
        raise OSError(f"{found} bytes came, but the manifest says {size}")
    if sha256 is not None and sha256_of(part) != sha256:
        raise OSError("its SHA-256 is not the manifest's")
    with part.open("rb") as file:
        os.fsync(file.fileno())  # a power cut must not leave a hollow file under the final name
