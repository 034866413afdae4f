"""Where the members of a shard lie: offsets and sizes, so that any record is one `pread` away.

An index is made from the tar's own headers, so it also serves shards written by other tools. Tars
must be uncompressed. Only the JSON members are read; images are located, not opened.
"""

import json
import tarfile
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.files import atomic_file
from pipeline.data.joined import Shards
from pipeline.errors import DataError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ShardIndex:
    """Members of one shard, one row a record; offsets and sizes in bytes, all of shape (n,)."""

    names: NDArray[np.bytes_]  # the keys in UTF-8: a quarter of the memory of NumPy's text
    image_offset: Ints
    image_size: Ints
    json_offset: Ints
    json_size: Ints
    text_bytes: Ints  # of all captions together, in UTF-8
    captions: Ints  # how many there are

    def __len__(self) -> int:
        return len(self.names)

    def key(self, record: int) -> str:
        """Return the key of a record."""
        return bytes(self.names[record]).decode()


def captions_of(data: dict[str, Any]) -> list[str]:
    """Return a record's captions: its "captions", or the one "caption" of img2dataset.

    Anything that is no text, or blank, is left out; the list may be empty.
    """
    found = data.get("captions", data.get("caption"))
    candidates = found if isinstance(found, list) else [found]
    return [text for text in candidates if isinstance(text, str) and text.strip()]


def build_index(tar: Path) -> tuple[ShardIndex, Counter[str]]:
    """Index a shard from its tar headers.

    Args:
        tar: path of an uncompressed tar.

    Returns:
        The index, and the number of keys that are not in it by reason ("no image member",
        "no json member", "duplicate member").

    Raises:
        DataError: it cannot be read as a tar.
    """
    skipped: Counter[str] = Counter()
    rows: dict[str, dict[str, int]] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                if member.isfile() and not _add_member(rows, archive, member):
                    skipped["duplicate member"] += 1
    except (tarfile.TarError, OSError, EOFError) as error:
        cause = " ".join(str(error).split())
        raise DataError(
            f"{tar}: not a readable, uncompressed tar ({cause}); copy or write the shard again"
        ) from error
    complete = {key: row for key, row in rows.items() if "image" in row and "json" in row}
    skipped["no image member"] += sum("image" not in row for row in rows.values())
    skipped["no json member"] += sum("image" in r and "json" not in r for r in rows.values())
    return _to_index(complete), +skipped


def _add_member(
    rows: dict[str, dict[str, int]], archive: tarfile.TarFile, member: tarfile.TarInfo
) -> bool:
    """Note one file of the tar under its key; False where the key has such a member already."""
    folder, slash, name = member.name.rpartition("/")
    stem, _, extension = name.partition(".")  # WebDataset: the key ends at the first dot
    extension = extension.lower()
    kind = "image" if extension in IMAGE_EXTENSIONS else extension
    if kind not in ("image", "json"):
        return True
    row = rows.setdefault(folder + slash + stem, {})
    if kind in row:
        return False
    row[kind] = member.offset_data
    row[f"{kind} size"] = member.size
    if kind == "json":
        file = archive.extractfile(member)
        captions = _captions(file.read() if file is not None else b"")
        row["captions"] = len(captions)
        row["text"] = sum(len(text.encode(errors="replace")) for text in captions)
    return True


def _captions(content: bytes) -> list[str]:
    """Captions of a JSON member; none when it is broken, which the reader counts as a fault."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return []
    return captions_of(data) if isinstance(data, dict) else []


def _to_index(rows: dict[str, dict[str, int]]) -> ShardIndex:
    def column(name: str) -> Ints:
        return np.array([row[name] for row in rows.values()], dtype=np.int64)

    names = np.array([key.encode(errors="surrogateescape") for key in rows], dtype=np.bytes_)
    return ShardIndex(
        names=names,
        image_offset=column("image"),
        image_size=column("image size"),
        json_offset=column("json"),
        json_size=column("json size"),
        text_bytes=column("text"),
        captions=column("captions"),
    )


def save_index(index: ShardIndex, path: Path, **extra: str) -> None:
    """Write an index (the same content gives the same bytes), with texts that belong to it."""
    arrays: dict[str, NDArray[Any]] = {name: np.array(text) for name, text in extra.items()}
    arrays.update(vars(index))
    with atomic_file(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_index(path: Path) -> tuple[ShardIndex, dict[str, str]]:
    """Read an index file.

    Returns:
        The index, and the texts that `save_index` was given.

    Raises:
        DataError: it is missing or damaged.
    """
    fields = ShardIndex.__dataclass_fields__
    try:
        with np.load(path, allow_pickle=False) as arrays:
            extra = {name: str(arrays[name]) for name in arrays.files if name not in fields}
            index = ShardIndex(**{name: arrays[name] for name in fields})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        cause = " ".join(str(error).split())
        raise DataError(
            f"{path}: missing or damaged index ({cause}); prepare the shards again"
        ) from error
    return index, extra


def load_index(manifest: Shards, shard_number: int) -> ShardIndex:
    """Read the index of a shard of a manifest.

    Raises:
        DataError: it is missing or damaged, or has another number of records than the manifest.
    """
    entry = manifest.shards[shard_number]
    path = manifest.index_path(shard_number)
    index, _ = read_index(path)
    if len(index) != entry.records:
        raise DataError(
            f"{path}: {len(index)} records, but the manifest says {entry.records}; "
            "prepare the shards again"
        )
    return index
