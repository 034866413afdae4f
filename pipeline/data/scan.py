"""Finds the records in a tar: reads all its headers and its texts, locates images without opening.

Serves tars that others made: it trusts neither names nor types of members, and a tar that does not
end as a tar must is refused, since tarfile itself would stop there without a word.
"""

import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from pipeline.data.faults import ContentFault
from pipeline.data.images import EXTENSIONS
from pipeline.data.index import (
    MOST_TEXT,
    Ints,
    ShardIndex,
    captions_of,
    key_of,
    text_bytes_of,
)
from pipeline.errors import DataError

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_READ = 1 << 20


@dataclass
class _Record:
    """Members found under one key: where they are, and how many captions of what length they hold.

    Kinds are image, json and txt.
    """

    places: dict[str, tuple[int, int]] = field(default_factory=dict)  # (offset, size)
    imageless: bool = False  # its JSON says that it has no image
    texts: dict[str, tuple[int, int]] = field(default_factory=dict)  # (captions, bytes)

    @property
    def captions(self) -> tuple[int, int]:
        """Number and bytes of the captions that a reader will take."""
        from_json = self.texts.get("json", (0, 0))
        return from_json if from_json[0] else self.texts.get("txt", (0, 0))


def build_index(tar: Path) -> tuple[ShardIndex, list[ContentFault]]:
    """Index a shard from its tar headers.

    The key of a member is its name up to the first dot of its last part (WebDataset's rule); the
    captions are those of the JSON member, or the text of the txt member where that has none. A
    record without an image is one whose JSON says so ("image": null); otherwise it is missing.

    Args:
        tar: path of an uncompressed tar.

    Returns:
        The index, and what is not in it: keys without image or without text, second members of a
        key and kind, texts of more than 16 MiB, links, sparse members, and names that are absolute
        or contain `..`.

    Raises:
        DataError: it cannot be read as a tar, or is cut short.
    """
    records: dict[str, _Record] = {}
    faults: list[ContentFault] = []
    try:
        with tar.open("rb") as file:
            _refuse_compressed(tar, file)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    reason = _add_member(records, archive, member)
                    if reason:
                        faults.append(ContentFault(reason, tar.name, _printable(member.name)))
                end = archive.offset
            _check_end(tar, file, end)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        cause = " ".join(str(error).split())
        raise DataError(
            f"{tar}: not a readable, uncompressed tar ({cause}); copy or write the shard again"
        ) from error
    complete = {}
    for key, record in records.items():
        texts = len(record.places) - ("image" in record.places)
        if texts and ("image" in record.places or record.imageless):
            complete[key] = record
            continue
        reason = "no json or txt member" if "image" in record.places else "no image member"
        faults.append(ContentFault(reason, tar.name, _printable(key)))
    return _to_index(complete), faults


def _refuse_compressed(tar: Path, file: BinaryIO) -> None:
    start = file.read(8)
    file.seek(0)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(
                f"{tar}: compressed with {name}, so records cannot be read by their place; "
                "unpack it to a plain .tar"
            )


def _check_end(tar: Path, file: BinaryIO, end: int) -> None:
    """Refuse a tar without its end mark, or with more behind it (two tars in one file)."""
    file.seek(end)
    mark = file.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE or any(mark):
        raise DataError(
            f"{tar}: cut short or damaged at byte {end}, records may be missing; "
            "copy or make the shard again, or leave it out"
        )
    while block := file.read(_READ):
        if block.strip(b"\0"):
            raise DataError(
                f"{tar}: goes on behind its end mark at byte {end} (tars put together?); "
                "unpack it and write one tar"
            )


def _add_member(
    records: dict[str, _Record], archive: tarfile.TarFile, member: tarfile.TarInfo
) -> str | None:
    """Note one member under its key; the reason where that is not possible."""
    if member.isdir():
        return None
    key, extension = key_of(member.name)
    extension = extension.lower()
    kind = "image" if extension in EXTENSIONS else extension
    if kind not in ("image", "json", "txt") or not key or key.endswith("/"):
        return None  # other data of the record, or a hidden file
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return "unsafe member name"
    if not member.isreg() or member.issparse():
        return "link or sparse member"
    if kind != "image" and member.size > MOST_TEXT:
        return "text too large"
    record = records.setdefault(key, _Record())
    if kind in record.places:
        return "duplicate member"
    record.places[kind] = (member.offset_data, member.size)
    if kind != "image":
        file = archive.extractfile(member)
        data = _parse(kind, file.read() if file is not None else b"")
        record.texts[kind] = (len(captions_of(data)), text_bytes_of(data))
        record.imageless |= "image" in data and data["image"] is None
    return None


def _parse(kind: str, content: bytes) -> dict[str, Any]:
    """A text member; empty when it is broken, which the reader counts as a fault."""
    try:
        data = json.loads(content) if kind == "json" else {"caption": content.decode()}
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _printable(name: str) -> str:
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _to_index(records: dict[str, _Record]) -> ShardIndex:
    def column(values: list[int]) -> Ints:
        return np.array(values, dtype=np.int64)

    rows = list(records.values())
    places = {
        kind: [row.places.get(kind, (-1, 0)) for row in rows] for kind in ("image", "json", "txt")
    }
    names = np.array([key.encode(errors="surrogateescape") for key in records], dtype=np.bytes_)
    return ShardIndex(
        names=names,
        text_bytes=column([row.captions[1] for row in rows]),
        captions=column([row.captions[0] for row in rows]),
        **{f"{kind}_offset": column([at for at, _ in found]) for kind, found in places.items()},
        **{f"{kind}_size": column([size for _, size in found]) for kind, found in places.items()},
    )
