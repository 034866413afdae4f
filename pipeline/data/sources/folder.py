"""A folder of images with a captions file: one's own data without code.

The captions file (`table.py` reads it) names an image in every row; several rows of one image are
several captions. A broken row, and an image that no row names, become records with a fault, so that
they are counted and listed when the shards are written. Images are found by name, not opened.
"""

import os
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from pipeline.config import PrepareConfig
from pipeline.data.faults import ContentFault
from pipeline.data.images import EXTENSIONS
from pipeline.data.sources.paths import need_file, need_folder, need_some
from pipeline.data.sources.record import FileImage, SourceRecord, hashed_key, make_key
from pipeline.data.sources.table import read_rows
from pipeline.errors import DataError

_LONGEST = 60  # letters of a key without a hash

Captions = dict[str, dict[str, dict[str, None]]]  # split -> image -> captions, all in order


def load_folder(cfg: PrepareConfig) -> dict[str, Sequence[SourceRecord]]:
    """Load a folder of images and its captions file.

    Args:
        cfg: `images` (sub-folders included), `captions`, and where needed the names of its columns.
            A row belongs to the split that its split column says, else to `split`.

    Returns:
        Split -> records in the order in which the file first names them; broken rows and images
        that no row names stand at the end of the first split.

    Raises:
        ConfigError: a path or a column is missing, or the folder holds none of the images.
        DataError: the captions file cannot be read, or holds no usable row.
    """
    images = need_folder("images", cfg.images, "the folder that holds your images")
    file = need_file("captions", cfg.captions, "a .csv, .tsv, .jsonl or .json file with captions")
    names = _ImageNames(images)
    captions: Captions = {}
    faults: list[ContentFault] = []
    named: set[str] = set()
    for row in read_rows(file, cfg):
        name = names.find(row.image)
        named.add(name)
        if row.fault or not name:
            reason = row.fault or "path outside the image folder"
            detail = row.detail or row.image
            faults.append(ContentFault(reason, key=f"row:{row.number}", detail=detail))
            continue
        texts = captions.setdefault(row.split or cfg.split, {}).setdefault(name, {})
        texts.update(dict.fromkeys(row.captions))
    if not captions:
        cause = str(faults[0]) if faults else "it has no rows"
        raise DataError(f"captions={file}: no usable row ({cause}); mend it or name another file")
    wanted = {name for rows in captions.values() for name in rows}
    need_some("images", cfg.images, (images / name for name in sorted(wanted)))
    keys = _keys(wanted | set(names.all))
    unnamed = [name for name in names.all if name not in named]
    faults += [ContentFault("no row names it", key=keys[name], detail=name) for name in unnamed]
    splits = {split: _records(rows, images, keys) for split, rows in captions.items()}
    next(iter(splits.values())).extend(_unusable(fault) for fault in faults)
    return dict(splits)


class _ImageNames:
    """The image files in a folder, and which of them a row means."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.all = sorted(_walk(folder))  # below the folder, with forward slashes
        # A row may lack the extension, and file systems differ in how they write "ü".
        self._similar = {_plain(os.path.splitext(name)[0]): name for name in reversed(self.all)}
        self._similar |= {_plain(name): name for name in self.all}
        self._exact = set(self.all)

    def find(self, text: str) -> str:
        """Return the name below the folder, also of a file that is not there; "" if outside."""
        if os.path.isabs(text):
            text = os.path.relpath(text, os.path.abspath(self._folder))
        name = posixpath.normpath(text)
        if name.startswith("../") or name in (".", ".."):
            return ""
        if name in self._exact or os.path.isfile(self._folder / name):
            return name
        return self._similar.get(_plain(name.replace("\\", "/")), name)


def _walk(folder: Path) -> Iterator[str]:
    for place, _, files in os.walk(folder):
        for name in files:
            if name.lower().endswith(tuple(f".{extension}" for extension in EXTENSIONS)):
                yield (Path(place) / name).relative_to(folder).as_posix()


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _keys(names: Iterable[str]) -> dict[str, str]:
    """A key for each image: its path, and a hash of it where that alone would not do."""
    short = {name: make_key(str(PurePosixPath(name).with_suffix(""))) for name in names}
    uses = Counter(short.values())
    return {
        name: key if uses[key] == 1 and len(key) <= _LONGEST else hashed_key(name, key)
        for name, key in short.items()
    }


def _records(
    rows: dict[str, dict[str, None]], images: Path, keys: dict[str, str]
) -> list[SourceRecord]:
    return [
        SourceRecord(keys[name], FileImage(images / name), tuple(texts), image_id=name)
        for name, texts in rows.items()
    ]


def _unusable(fault: ContentFault) -> SourceRecord:
    return SourceRecord(fault.key, FileImage(Path()), (), image_id=fault.key, fault=fault)
