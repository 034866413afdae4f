"""Flickr8k: its captions file (Kaggle's CSV or the original token file) and its split lists.

Images that a list names and the folder does not hold are skipped and counted when the shards are
written, so an incomplete copy of the images will do.
"""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import PrepareConfig
from pipeline.data.sources.paths import need_file, need_folder, need_some
from pipeline.data.sources.record import FileImage, SourceRecord, make_key
from pipeline.errors import DataError

_TOKEN_LINE = re.compile(r"(?P<name>[^\t]+)#\d+\t(?P<caption>.*)")
_LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}


def load_flickr8k(cfg: PrepareConfig) -> dict[str, Sequence[SourceRecord]]:
    """Load Flickr8k.

    Args:
        cfg: `images` (folder), `captions` (captions.txt or Flickr8k.token.txt) and `split_lists`
            (folder with the three lists).

    Returns:
        "train", "val" and "test" -> records in the order of the lists.

    Raises:
        ConfigError: a path is missing, or the folder holds none of the images.
        DataError: the captions file is in neither format.
    """
    images = need_folder("images", cfg.images, "the folder that holds Flickr8k's images")
    file = need_file("captions", cfg.captions, "Flickr8k's captions.txt or Flickr8k.token.txt")
    what = "the folder that holds Flickr_8k.trainImages.txt and the two others"
    folder = need_folder("split_lists", cfg.split_lists, what)
    lists = {
        split: _read_list(need_file("split_lists", str(path), what))
        for split, path in split_list_files(folder).items()
    }
    need_some("images", cfg.images, (images / name for names in lists.values() for name in names))
    captions = _read_captions(file)
    return {
        split: [_record(name, images, captions) for name in names] for split, names in lists.items()
    }


def split_list_files(folder: Path) -> dict[str, Path]:
    """Return where the list of each split lies."""
    return {split: folder / name for split, name in _LISTS.items()}


def _record(name: str, images: Path, captions: dict[str, list[str]]) -> SourceRecord:
    return SourceRecord(
        key=make_key(Path(name).stem),
        image=FileImage(images / name),
        captions=tuple(captions.get(name, ())),
        image_id=Path(name).stem,
    )


def _read_list(path: Path) -> list[str]:
    """Image names of a split list, in order, without duplicates."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def _read_captions(path: Path) -> dict[str, list[str]]:
    """Image name -> captions, from either format."""
    captions: dict[str, list[str]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            first = file.readline()
            file.seek(0)
            if _TOKEN_LINE.match(first):
                for line in file:
                    if (match := _TOKEN_LINE.match(line.rstrip("\r\n"))) is not None:
                        captions.setdefault(match["name"], []).append(match["caption"].strip())
                return captions
            for row in csv.DictReader(file):
                captions.setdefault(row["image"], []).append((row["caption"] or "").strip())
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"captions={path}: neither lines of image,caption nor of name#0<TAB>caption "
            f"({type(error).__name__}: {error}); name Flickr8k's captions.txt"
        ) from error
    return captions
