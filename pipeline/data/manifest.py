"""The list of a split's shards: what a folder must hold to be read.

`manifest.json` is written last, so a folder that has one is complete. Reading it checks that all
shards are there with their sizes; it does not hash their content again.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.files import atomic_file
from pipeline.errors import DataError

MANIFEST_NAME = "manifest.json"
VERSION = 1


@dataclass(frozen=True)
class ShardEntry:
    """One shard: its file name, its size in bytes, its records, and its hash when known."""

    name: str
    bytes: int
    records: int
    sha256: str | None = None


@dataclass(frozen=True)
class Manifest:
    """All shards of a split, in order, and what was left out of them, by reason."""

    folder: Path
    shards: tuple[ShardEntry, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)

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

    def path(self, shard: int) -> Path:
        """Return the path of a shard by its number."""
        return self.folder / self.shards[shard].name


def save_manifest(manifest: Manifest) -> None:
    """Write `manifest.json` into the manifest's folder; the shards must be complete before."""
    content = {
        "version": VERSION,
        "records": manifest.records,
        "shards": [asdict(shard) for shard in manifest.shards],
        "skipped": dict(sorted(manifest.skipped.items())),
    }
    with atomic_file(manifest.folder / MANIFEST_NAME) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of a split and check that its shards are there.

    Args:
        folder: the split's folder.

    Raises:
        DataError: there is no manifest, or an unreadable one, or one of another version; a shard
            is missing or has another size.
    """
    path = Path(folder) / MANIFEST_NAME
    content = _read(path)
    try:
        shards = tuple(ShardEntry(**_checked(shard)) for shard in content["shards"])
        manifest = Manifest(path.parent, shards, {k: int(v) for k, v in content["skipped"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not a manifest ({error}); prepare the shards again") from error
    for shard in manifest.shards:
        _check_file(manifest.folder / shard.name, shard)
    return manifest


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file, so these shards are missing or unfinished; "
            "run stages/prepare.py, or set data.shards to the folder above the splits"
        ) from error
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read ({cause}); prepare the shards again") from error
    version = content.get("version") if isinstance(content, dict) else None
    if not isinstance(content, dict) or version != VERSION:
        raise DataError(
            f"{path}: version {version!r}, but this code reads version {VERSION}; "
            "prepare the shards again"
        )
    return content


def _checked(shard: dict[str, Any]) -> dict[str, Any]:
    """Refuse names that lead out of the folder: a manifest may come from somebody else."""
    name = shard["name"]
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".tar"):
        raise ValueError(f"bad shard name {name!r}")
    return shard


def _check_file(path: Path, shard: ShardEntry) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(
            f"{path}: the manifest lists this shard, but it is not there ({error.strerror}); "
            "copy it again, or prepare the shards again"
        ) from error
    if size != shard.bytes:
        raise DataError(
            f"{path}: {size} bytes, but the manifest says {shard.bytes}; "
            "copy the shard again, or prepare the shards again"
        )
