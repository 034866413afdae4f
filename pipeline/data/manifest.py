"""The list of a split's shards: what a folder must hold to be read.

`manifest.json` is written last, so a folder that has one is complete. The shards lie beside it, or
wherever its `shards_at` says; both places may be remote. Loading it checks that all local shards
are there, unchanged by their size and time; it does not hash their content again (`check.py` does).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.cache import ShardCache
from pipeline.data.files import atomic_file
from pipeline.data.remote import checked_place, is_remote
from pipeline.data.stage import Stage
from pipeline.errors import DataError

MANIFEST_NAME = "manifest.json"
SKIPPED_NAME = "skipped.jsonl"  # beside it: what was left out, one line a record
INDEX_SUFFIX = ".index.npz"
VERSION = 2
_MOST = {"bytes": 2**50, "records": 2**40, "mtime_ns": 2**63}  # of one shard; more is not believed


@dataclass(frozen=True)
class ShardEntry:
    """One shard, as its manifest and its index know it."""

    name: str  # its path below the place of the shards
    bytes: int
    records: int
    sha256: str | None = None  # where it was hashed
    mtime_ns: int | None = None  # of a shard that somebody else made: when it was last changed


@dataclass(frozen=True)
class Manifest:
    """All shards of a split, in order, and what was left out of them, by reason."""

    folder: Path  # of the manifest and the indexes; of no use where `home` is set
    shards: tuple[ShardEntry, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    at: str | None = None  # folder or URL where the shards lie; None: beside the manifest
    home: str | None = None  # URL of the manifest's own folder where that is remote
    cache: ShardCache = field(default_factory=ShardCache, compare=False)
    stage: Stage | None = field(default=None, compare=False)  # where local shards are copied to

    @property
    def records(self) -> int:
        """Number of records of the split."""
        return sum(shard.records for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all shards together."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def sizes(self) -> list[int]:
        """Records of each shard, what `Plan` takes."""
        return [shard.records for shard in self.shards]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the shards' names, counts and hashes; not of where they lie."""
        listing = [[s.name, s.bytes, s.records, s.sha256] for s in self.shards]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()

    @property
    def retried(self) -> int:
        """How often this process asked a server again."""
        return len(self.cache.retried)

    @property
    def unstaged(self) -> int:
        """How many shards this process could not copy to the stage."""
        return 0 if self.stage is None else len(self.stage.refused)

    @property
    def place(self) -> str:
        """Where the manifest lies, for messages."""
        return self.home or str(self.folder)

    def where(self, shard: int) -> str:
        """Return the path or URL at which a shard lies, for messages."""
        name = self.shards[shard].name
        remote = self._remote
        return f"{remote}/{name}" if remote else str(self.folder / (self.at or "") / name)

    def path(self, shard: int) -> Path:
        """Return the local path of a shard by its number; a remote one is fetched whole, another
        is copied where there is a stage.

        Raises:
            DataError: it cannot be fetched (see `ShardCache.fetch`, also for how long it stays).
        """
        entry, where = self.shards[shard], Path(self.where(shard))
        if self._remote is None:
            stage = self.stage
            return stage.copy_of(where, size=entry.bytes, sha256=entry.sha256) if stage else where
        return self.cache.fetch(self.where(shard), size=entry.bytes, sha256=entry.sha256)

    def index_where(self, shard: int) -> str:
        """Return the path or URL at which a shard's index lies, for messages."""
        name = index_path(Path(self.shards[shard].name))
        return f"{self.home}/{name}" if self.home else str(self.folder / name)

    def index_path(self, shard: int) -> Path:
        """Return the local path of a shard's index; a remote one is fetched, raises as `path`."""
        if self.home is None:
            return Path(self.index_where(shard))
        entry = self.shards[shard]
        version = f"{entry.bytes} {entry.records} {entry.sha256}"
        return self.cache.fetch(self.index_where(shard), version=version)

    @property
    def _remote(self) -> str | None:
        """The URL at which the shards lie, None where they are local."""
        place = self.at or self.home
        return place if place is not None and is_remote(place) else None


def index_path(shard: Path) -> Path:
    """Return the name of a shard's index: `x.tar` -> `x.index.npz`."""
    return shard.with_suffix(INDEX_SUFFIX)


def save_manifest(manifest: Manifest) -> None:
    """Write `manifest.json` into the manifest's folder; the shards must be complete before."""
    content = {
        "version": VERSION,
        "records": manifest.records,
        **({} if manifest.at is None else {"shards_at": manifest.at}),
        "shards": [asdict(shard) for shard in manifest.shards],
        "skipped": dict(sorted(manifest.skipped.items())),
    }
    with atomic_file(manifest.folder / MANIFEST_NAME) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def load_manifest(place: str | Path, cache: ShardCache | None = None) -> Manifest:
    """Read the manifest of a split and check that its shards are there, where they are local.

    Args:
        place: the split's folder, a path or a URL.
        cache: through which remote files are read; None for one in the user's cache folder.

    Raises:
        ConfigError: a URL that is not allowed (see `remote.checked_place`).
        DataError: there is no manifest, or an unreadable one, or one of another version; a local
            shard is missing, has another size, or was changed since it was indexed.
    """
    manifest = read_manifest(place, cache)
    for number, shard in enumerate(manifest.shards):
        if not is_remote(manifest.where(number)):
            check_file(manifest.path(number), shard)
    return manifest


def read_manifest(place: str | Path, cache: ShardCache | None = None) -> Manifest:
    """Read the manifest of a split as it stands, without a look at the shards.

    Raises:
        ConfigError: as `load_manifest`.
        DataError: there is no manifest, or an unreadable one, or one of another version.
    """
    cache = cache or ShardCache()
    place = checked_place(str(place), cache.schemes)
    home = place if is_remote(place) else None
    path = f"{place}/{MANIFEST_NAME}"
    content = _read(path, None if home is None else cache.read(path))
    try:
        shards = tuple(ShardEntry(**_checked(shard)) for shard in content["shards"])
        skipped = {reason: int(count) for reason, count in content["skipped"].items()}
        at = content.get("shards_at")
        at = None if at is None else checked_place(at, cache.schemes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not a manifest ({error}); prepare the shards again") from error
    if home is not None and at is not None and not is_remote(at):
        raise DataError(
            f"{path}: is remote, but its shards_at={at!r} is a local path; "
            "copy the manifest and its indexes here"
        )
    return Manifest(Path(place), shards, skipped, at, home, cache)


def _read(path: str, fetched: bytes | None) -> dict[str, Any]:
    """The manifest's content; from the file at `path` where it was not fetched."""
    try:
        content = json.loads(Path(path).read_bytes() if fetched is None else fetched)
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file, so these shards are missing or unfinished; "
            "run stages/prepare.py, or set data.shards to the folder above the splits"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); mend its rights") from error
    except (ValueError, RecursionError) as error:
        cause = " ".join(str(error).split())
        raise DataError(f"{path}: not JSON ({cause}); prepare the shards again") from error
    version = content.get("version") if isinstance(content, dict) else None
    if not isinstance(content, dict) or version != VERSION:
        raise DataError(
            f"{path}: version {version!r}, but this code reads version {VERSION}; "
            "prepare the shards again"
        )
    return content


def _checked(shard: dict[str, Any]) -> dict[str, Any]:
    """Refuse values that cannot be, and names that lead out of the folder.

    A manifest may come from somebody else.
    """
    for key, most in _MOST.items():
        value = shard.get(key)
        optional = key == "mtime_ns" and value is None
        if not optional and (type(value) is not int or not 0 <= value < most):
            raise ValueError(f"bad {key} {str(value)[:40]}")
    if not isinstance(shard.get("sha256"), str | None):
        raise ValueError("bad sha256")
    name = shard["name"]
    inside = isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts
    if not inside or not name.endswith(".tar"):
        raise ValueError(f"bad shard name {name!r}")
    return shard


def check_file(path: Path, shard: ShardEntry) -> None:
    """Refuse a shard that is not there, or whose size or time is not the manifest's.

    Raises:
        DataError: with the path, what was expected and what is there.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(
            f"{path}: the manifest lists this shard, but it is not there ({error.strerror}); "
            "copy it again, or prepare the shards again"
        ) from error
    if found.st_size != shard.bytes:
        raise DataError(
            f"{path}: {found.st_size} bytes, but the manifest says {shard.bytes}; "
            "copy the shard again, or prepare the shards again"
        )
    if shard.mtime_ns is not None and found.st_mtime_ns != shard.mtime_ns:
        raise DataError(
            f"{path}: was changed (or copied) after it was indexed; "
            "run stages/prepare.py again, which indexes what has changed"
        )
