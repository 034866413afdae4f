"""COCO captions: the official annotation files, or Karpathy's splits (`dataset_coco.json`).

Image files need not all be there: a missing one is skipped and counted when the shards are written.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import PrepareConfig
from pipeline.data.sources.paths import need_file, need_folder, need_some, read_json
from pipeline.data.sources.record import FileImage, SourceRecord, make_key
from pipeline.errors import DataError

_IMAGES = "the folder that holds the COCO images"


def load_coco(cfg: PrepareConfig) -> dict[str, Sequence[SourceRecord]]:
    """Load COCO captions.

    Args:
        cfg: `images`, and either `karpathy` (its splits; restval counts as train) or `annotations`
            (all files together become `split`; an image in several keeps all its captions).

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
        splits = {cfg.split: _annotations(files, images)}
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
            image=FileImage(images / name),
            captions=tuple(captions.get(image_id, ())),
            image_id=image_id,
        )
        for image_id, name in names.items()
    ]


def _karpathy(file: Path, images: Path) -> dict[str, Sequence[SourceRecord]]:
    content = read_json("karpathy", file)
    folders: dict[str, Path] = {}
    splits: dict[str, list[SourceRecord]] = {}
    try:
        for image in content["images"]:
            name = str(image.get("filepath", ""))
            if name not in folders:
                folders[name] = images / name if (images / name).is_dir() else images
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
