"""Files on disks that fail: written so that a reader sees all or nothing, read with patience."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from pipeline.durable import sync
from pipeline.errors import DataError

T = TypeVar("T")

LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Failures that another try does not mend."""

_BLOCK = 1 << 20


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file next to `path` that becomes `path` when the block ends well.

    The name is fixed, so that what a killed process left is overwritten by the next try; two
    processes must not write the same path at the same time.

    Raises:
        DataError: the file cannot be written (no space, no permission).
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        cause = error.strerror or str(error)
        raise DataError(
            f"{path}: cannot be written ({cause}); make room or mend the rights, then run again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it; raises DataError where that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be made ({error.strerror}); name a folder that you may write to"
        ) from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@dataclass
class Patience:
    """Does something with a file, again where the file system failed; it knows how often.

    Network file systems fail now and then, and come back within seconds.
    """

    wait: float = 0.5  # seconds before the second try, doubled for each that follows
    tries: int = 5
    retried: int = 0  # tries that were not a first one

    def __call__(
        self,
        where: Path | str,
        action: Callable[[], T],
        *,
        lasting: tuple[type[OSError], ...] = (),
    ) -> T:
        """Returns what `action` does once it succeeds.

        Args:
            where: the file, named in the error.
            action: what is done; an OSError of it is worth another try.
            lasting: errors that are raised as they are, at once.

        Raises:
            DataError: it failed each time.
        """
        cause = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
                self.retried += 1
            try:
                return action()
            except lasting:
                raise
            except OSError as error:
                cause = error.strerror or str(error)
        raise DataError(
            f"{where}: cannot be read after {self.tries} tries ({cause}); "
            "check the file system, or copy the file again"
        )
