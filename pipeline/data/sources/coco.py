"""COCO captions: the official annotation files, with or without Karpathy's splits.

Karpathy's splits come as `dataset_coco.json` or as lists of image ids beside the annotations; ids
are the same in COCO 2014 and 2017. Image files need not all be there: a missing one is skipped and
counted when the shards are written.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import PrepareConfig
from pipeline.data.sources.paths import need_file, need_folder, need_some, read_json
from pipeline.data.sources.record import FileImage, SourceRecord, make_key
from pipeline.errors import DataError

_IMAGES = "the folder that holds the COCO images"
_LIST = "karpathy_{}_images.txt"
_LISTS = "a folder with karpathy_val_images.txt and karpathy_test_images.txt"
_NAME_OF_2014 = re.compile(r"COCO_(?P<folder>\w+2014)_\d+")


def load_coco(cfg: PrepareConfig) -> dict[str, Sequence[SourceRecord]]:
    """Load COCO captions.

    Args:
        cfg: `images`, and either `karpathy` (its splits; restval counts as train) or `annotations`
            (an image in several files keeps all its captions). These become `split`, or with
            `split_lists` what Karpathy's lists say: val, test, and all others train (only those
            of karpathy_train_images.txt where that list is there, too).

    Returns:
        Split -> records in the order of the files.

    Raises:
        ConfigError: a path is missing, or the folder holds none of the images.
        DataError: a file is not in COCO's or Karpathy's format.
    """
    images = need_folder("images", cfg.images, _IMAGES)
    if cfg.karpathy:
        file = need_file("karpathy", cfg.karpathy, "Karpathy's dataset_coco.json")
        splits = _karpathy(file, images)
    else:
        what = "one or more COCO caption files, e.g. [captions_train2014.json]"
        names = cfg.annotations or [""]
        files = [need_file("annotations", name, what) for name in names]
        records = _annotations(files, images)
        splits = _by_list(cfg.split_lists, records) if cfg.split_lists else {cfg.split: records}
    paths = (r.image.path for rs in splits.values() for r in rs if isinstance(r.image, FileImage))
    need_some("images", cfg.images, paths)
    return splits


def _annotations(files: Sequence[Path], images: Path) -> list[SourceRecord]:
    names: dict[int, str] = {}
    captions: dict[int, dict[str, None]] = {}  # a dict keeps the order and drops duplicates
    for file in files:
        content = read_json("annotations", file)
        try:
            names.update({int(i["id"]): str(i["file_name"]) for i in content["images"]})
            for annotation in content["annotations"]:
                texts = captions.setdefault(int(annotation["image_id"]), {})
                texts[str(annotation["caption"]).strip()] = None
        except (KeyError, TypeError, ValueError) as error:
            raise _not_in_format("annotations", file, "a COCO caption file", error) from error
    return [
        SourceRecord(
            key=f"{image_id:012d}",
            image=FileImage(_folder_of(name, images) / name),
            captions=tuple(captions.get(image_id, ())),
            image_id=image_id,
        )
        for image_id, name in names.items()
    ]


def _folder_of(name: str, images: Path) -> Path:
    """`images`, or the train2014 or val2014 in it that a name of 2014 tells."""
    match = _NAME_OF_2014.match(name)
    inner = images / match["folder"] if match else images
    return inner if inner.is_dir() else images


def coco_list_files(folder: Path) -> dict[str, Path]:
    """The lists of Karpathy's splits in a folder; that of the training split may be missing."""
    files = {split: folder / _LIST.format(split) for split in ("train", "val", "test")}
    return {split: path for split, path in files.items() if split != "train" or path.is_file()}


def _by_list(lists: str, records: Sequence[SourceRecord]) -> dict[str, Sequence[SourceRecord]]:
    """Records by Karpathy's lists; what no list names is train, as restval is."""
    files = coco_list_files(need_folder("split_lists", lists, _LISTS))
    listed: dict[int, str] = {}
    for split, path in files.items():
        for image_id in _read_ids(need_file("split_lists", str(path), _LISTS)):
            listed[image_id] = split
    rest = None if "train" in files else "train"
    splits: dict[str, list[SourceRecord]] = {split: [] for split in ("train", "val", "test")}
    for record in records:
        found = listed.get(int(record.image_id), rest)
        if found is not None:
            splits[found].append(record)
    return dict(splits)


def _read_ids(path: Path) -> list[int]:
    """The image ids of a list: the last number of each line, `val2014/COCO_val2014_....jpg 42`."""
    lines = path.read_text(encoding="utf-8").split("\n")
    numbers = [(line, re.findall(r"\d+", line)) for line in lines if line.strip()]
    for line, found in numbers:
        if not found:
            raise DataError(
                f"split_lists={path}: the line {line.strip()[:60]!r} names no image id; name "
                f"{_LISTS}"
            )
    return [int(found[-1]) for _, found in numbers]


def _karpathy(file: Path, images: Path) -> dict[str, Sequence[SourceRecord]]:
    content = read_json("karpathy", file)
    folders: dict[str, Path] = {}
    splits: dict[str, list[SourceRecord]] = {}
    try:
        for image in content["images"]:
            name = str(image.get("filepath", ""))
            if name not in folders:
                folders[name] = images / name if os.path.isdir(images / name) else images
            split = "train" if image["split"] == "restval" else str(image["split"])
            splits.setdefault(split, []).append(_karpathy_record(image, folders[name]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _not_in_format("karpathy", file, "a dataset_coco.json", error) from error
    return dict(splits)


def _karpathy_record(image: dict[str, Any], folder: Path) -> SourceRecord:
    name = str(image["filename"])
    image_id = image["cocoid"] if "cocoid" in image else image["imgid"]
    return SourceRecord(
        key=make_key(Path(name).stem),
        image=FileImage(folder / name),
        captions=tuple(str(sentence["raw"]).strip() for sentence in image["sentences"]),
        image_id=int(image_id),
    )


def _not_in_format(key: str, file: Path, what: str, error: Exception) -> DataError:
    cause = f"{type(error).__name__}: {error}"
    return DataError(f"{key}={file}: not {what} ({cause}); name the right file or get it again")
