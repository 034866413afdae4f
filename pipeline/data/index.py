"""Where the members of a shard lie: offsets and sizes, so that any record is one `pread` away.

The index file of a shard, and how it is read and written; `scan.py` makes one from a tar. It
carries the manifest's entry of its shard, so that an index of an older shard is never used.
"""

import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.data import disk
from pipeline.data.files import atomic_file
from pipeline.data.joined import Shards
from pipeline.data.manifest import ShardEntry
from pipeline.errors import DataError

_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, RecursionError, zipfile.BadZipFile)

Ints = NDArray[np.int64]

MOST_TEXT = 1 << 24  # bytes of a JSON or text member; a larger one is no text of a record
_MOST_CLAIMED = 1 << 30  # bytes; a record that claims more text is not believed


@dataclass(frozen=True)
class ShardIndex:
    """Members of one shard, one row a record; offsets and sizes in bytes, all of shape (n,).

    A record has a JSON member, a text member, or both, and may have an image; the offset of a
    missing one is -1.
    """

    names: NDArray[np.bytes_]  # the keys in UTF-8: a quarter of the memory of NumPy's text
    image_offset: Ints
    image_size: Ints
    json_offset: Ints
    json_size: Ints
    txt_offset: Ints
    txt_size: Ints
    text_bytes: Ints  # of all captions together, in UTF-8, or what the JSON's "text_bytes" says
    captions: Ints  # how many there are

    def __len__(self) -> int:
        return len(self.names)

    def key(self, record: int) -> str:
        """Return the key of a record; bytes of it that are no UTF-8 are written as \\xNN."""
        return bytes(self.names[record]).decode(errors="backslashreplace")

    def differences(self, other: "ShardIndex") -> list[str]:
        """Return the names of the columns that are not the same in both."""
        mine, theirs = vars(self), vars(other)
        return [name for name in mine if not np.array_equal(mine[name], theirs[name])]


def key_of(name: str) -> tuple[str, str]:
    """Return the key of a tar's member and the rest of its name, which says its kind.

    The key is the name up to the first dot of its last part (WebDataset's rule); it ends with a
    slash for a hidden file.
    """
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension


def captions_of(data: dict[str, Any]) -> list[str]:
    """Return a record's captions: its "captions", or the one "caption" of img2dataset.

    Anything that is no text, or blank, is left out; the list may be empty.
    """
    found = data.get("captions", data.get("caption"))
    candidates = found if isinstance(found, list) else [found]
    return [text for text in candidates if isinstance(text, str) and text.strip()]


def text_bytes_of(data: dict[str, Any]) -> int:
    """Return how much text a record holds, in bytes: only rows of alike length need it.

    A record with more text than its captions says it itself, as "text_bytes".
    """
    told = data.get("text_bytes")
    if type(told) is int and 0 <= told <= _MOST_CLAIMED:
        return told
    return sum(len(text.encode(errors="replace")) for text in captions_of(data))


def save_index(index: ShardIndex, path: Path, entry: ShardEntry, **notes: str) -> None:
    """Write the index of a shard (the same content gives the same bytes).

    Args:
        index: what is written.
        path: of the file.
        entry: the shard that was indexed, as the manifest will list it.
        notes: texts for whoever writes shards, to know whether one is finished.
    """
    texts = {"entry": json.dumps(asdict(entry)), **notes}
    arrays: dict[str, NDArray[Any]] = {name: np.array(text) for name, text in texts.items()}
    arrays.update(vars(index))
    with atomic_file(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_index(path: Path) -> tuple[ShardIndex, ShardEntry, dict[str, str]]:
    """Read an index file.

    Returns:
        The index, the shard that it is of, and the notes that `save_index` was given.

    Raises:
        DataError: it is missing or damaged.
    """
    fields = ShardIndex.__dataclass_fields__
    try:
        content = io.BytesIO(disk.read_whole(path))
        _refuse_compressed(content)
        with np.load(content, allow_pickle=False) as arrays:
            notes = {name: str(arrays[name]) for name in arrays.files if name not in fields}
            index = ShardIndex(**{name: arrays[name] for name in fields})
        _check_columns(index)
        entry = ShardEntry(**json.loads(notes.pop("entry")))
    except _DAMAGED as error:
        cause = " ".join(str(error).split())
        raise DataError(
            f"{path}: missing or damaged index ({cause}); prepare the shards again"
        ) from error
    return index, entry, notes


def _refuse_compressed(file: BinaryIO) -> None:
    """Raises ValueError for arrays that could be larger than the file; we write none."""
    with zipfile.ZipFile(file) as archive:
        if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
            raise ValueError("it is compressed")
    file.seek(0)


def _check_columns(index: ShardIndex) -> None:
    """Raises ValueError unless all columns are of one length and of the types that are declared."""
    for name, column in vars(index).items():
        right = column.dtype.kind == "S" if name == "names" else column.dtype == np.int64
        if not right or column.shape != (len(index),):
            raise ValueError(f"{name} is {column.dtype} of shape {column.shape}")


def load_index(manifest: Shards, shard_number: int) -> ShardIndex:
    """Read the index of a shard of a manifest.

    Raises:
        DataError: it is missing or damaged, or of another shard than the manifest's.
    """
    path = manifest.index_path(shard_number)
    index, entry, _ = read_index(path)
    expected = manifest.shards[shard_number]
    if entry != expected or len(index) != expected.records:
        raise DataError(
            f"{path}: was made from another state of {expected.name} ({_state(entry)}) than the "
            f"manifest lists ({_state(expected)}); prepare the shards again"
        )
    return index


def _state(entry: ShardEntry) -> str:
    known = [f"{entry.records} records", f"{entry.bytes} bytes"]
    known += [f"sha256 {entry.sha256[:12]}"] if entry.sha256 else []
    known += [f"mtime_ns {entry.mtime_ns}"] if entry.mtime_ns is not None else []
    return ", ".join(known)
