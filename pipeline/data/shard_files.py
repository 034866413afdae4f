"""The bytes of a shard's members, from files that may fail, vanish or be replaced under our hands.

Files are opened when they are needed, a bounded number of them kept open, and opened anew after a
fault. Every member is read together with its tar header, which must still be the one that was
indexed: another file in a shard's place is an error, never other samples. Knows tars and disks, not
what a record is. It may be pickled, but not be used by two threads at once.
"""

import os
import tarfile
from typing import Any

from pipeline.data import disk
from pipeline.data.files import Patience
from pipeline.data.index import key_of
from pipeline.data.joined import Shards
from pipeline.data.lru import LRU

_HEADER = tarfile.BLOCKSIZE
_LONGEST_NAME = 100  # bytes; a header's own field, where longer names are cut short
_LARGEST_SIZE = 8**11  # bytes; larger sizes stand elsewhere


class ShardFiles:
    """Reads members of a split's shards by their place."""

    def __init__(self, manifest: Shards, *, open_shards: int, patience: Patience) -> None:
        """Open nothing yet.

        Args:
            manifest: of the split, or several joined.
            open_shards: most files kept open at a time.
            patience: with a file system that fails; counts what was tried again.
        """
        self._manifest = manifest
        self._patience = patience
        self._open_shards = open_shards
        self._make_cache()

    def _make_cache(self) -> None:
        self._files: LRU[int, int] = LRU(self._open_shards, on_drop=os.close)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open files behind: another process opens its own."""
        state = self.__dict__.copy()
        del state["_files"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_cache()

    def __contains__(self, shard: int) -> bool:
        """Whether a shard is open."""
        return shard in self._files

    def close(self) -> None:
        """Close all files; they are opened again when they are needed."""
        self._files.clear()

    def member(self, shard: int, key: str, offset: int, size: int) -> bytes:
        """Read a member.

        Args:
            shard: number of the shard in the manifest.
            key: of the record that it belongs to.
            offset, size: of its content, in bytes, as the index has them.

        Raises:
            DataError: the shard cannot be read, is gone, or is another one than was indexed.
        """

        def read() -> bytes:
            try:
                found = disk.read_at(self._open(shard), offset - _HEADER, _HEADER + size)
                _check_header(found[:_HEADER], key, offset, size)
            except OSError:
                self._files.discard(shard)  # a stale handle stays stale
                raise
            return found[_HEADER:]

        return self._patience(f"{self._manifest.where(shard)}: record {key}", read)

    def _open(self, shard: int) -> int:
        def open_() -> int:
            descriptor = disk.open_file(self._manifest.path(shard))
            try:
                self._check_file(descriptor, shard)
            except OSError:
                os.close(descriptor)
                raise
            return descriptor

        return self._files.get(shard, open_)

    def _check_file(self, descriptor: int, shard: int) -> None:
        """Raises OSError for a file that is not the manifest's: copied again, or half of it."""
        expected, found = self._manifest.shards[shard], os.fstat(descriptor)
        if found.st_size != expected.bytes:
            raise OSError(f"{found.st_size} bytes, but the manifest says {expected.bytes}")
        if expected.mtime_ns is not None and found.st_mtime_ns != expected.mtime_ns:
            raise OSError("it was changed after it was indexed; run stages/prepare.py again")


def _check_header(header: bytes, key: str, offset: int, size: int) -> None:
    """Raises OSError where a member's tar header is not that of the record's member."""
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise OSError(f"no tar header at byte {offset - _HEADER}; was it replaced?") from error
    # What does not fit into a header, or is no ASCII, stands before it in one of several ways.
    plain = found.name.isascii() and len(found.name) < _LONGEST_NAME and key.isascii()
    if (plain and key_of(found.name)[0] != key) or (size < _LARGEST_SIZE and found.size != size):
        raise OSError(
            f"at byte {offset - _HEADER} lies {found.name!r} of {found.size} bytes, not the "
            f"{size} bytes that were indexed; was the shard replaced?"
        )
