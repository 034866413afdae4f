"""`prepare.json` beside a split's shards: the settings that they were made with.

So that shards of other settings are never mixed in or taken for these. The files with captions and
splits count by their content and may be moved; that image files changed is not noticed.
"""

import json
import os
from pathlib import Path
from typing import Any

from pipeline.config import PrepareConfig
from pipeline.data.files import atomic_file, sha256_of
from pipeline.data.manifest import MANIFEST_NAME
from pipeline.data.remote import is_remote
from pipeline.data.sources.coco import coco_list_files
from pipeline.data.sources.flickr8k import split_list_files
from pipeline.data.sources.mme import question_files
from pipeline.errors import DataError

SETTINGS_NAME = "prepare.json"

_REMEDY = "set out to another folder, or delete this one"
_ALL = ("source", "images", "split", "records_per_shard", "seed")
# What only some sources draw from is theirs alone: a new default must not matter to the others.
_OWN = {
    "folder": ("image_column", "caption_column", "split_column"),
    "scenes": ("style", "wording", "image_size"),
    "scienceqa": ("resplit",),
    "instruct": ("held_out",),
}


def settings_of(cfg: PrepareConfig, split: str) -> dict[str, Any]:
    """Return everything that decides the bytes of a split's shards.

    Raises:
        OSError: a file with captions or splits cannot be read.
    """
    return {**_values(cfg, split), "inputs": _inputs(cfg)}


def save_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write `prepare.json` into a split's folder."""
    with atomic_file(folder / SETTINGS_NAME) as file:
        file.write((json.dumps(settings, indent=1, sort_keys=True) + "\n").encode())


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder that holds shards of other settings, or of unknown ones.

    Raises:
        DataError: with the keys that differ.
    """
    stored = _stored(folder)
    if stored is None or stored == settings:
        return
    keys = sorted(k for k in {*stored, *settings} if stored.get(k) != settings.get(k))
    changes = ", ".join(f"{k} was {stored.get(k)!r}, is {settings.get(k)!r}" for k in keys)
    raise DataError(f"{folder}: was prepared with other settings ({changes}); {_REMEDY}")


def check_prepared(cfg: PrepareConfig) -> None:
    """Refuse shards in `cfg.out` that were made with other settings than `cfg`'s.

    Unlike preparing it needs no raw data: where a file with captions is gone, the rest is compared.

    Raises:
        DataError: a split was prepared with other settings.
    """
    if not cfg.out:
        return
    for path in sorted(Path(cfg.out).expanduser().glob(f"*/{SETTINGS_NAME}")):
        folder = path.parent
        if cfg.source == "scenes" and folder.name not in cfg.counts:
            continue
        try:
            inputs = _inputs(cfg)
        except OSError:
            inputs = (_stored(folder) or {}).get("inputs", [])
        check_settings(folder, {**_values(cfg, folder.name), "inputs": inputs})


def _stored(folder: Path) -> dict[str, Any] | None:
    """The settings in a folder; None where there is nothing at all."""
    path = folder / SETTINGS_NAME
    try:
        stored = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        if any(folder.glob("*.tar")) or (folder / MANIFEST_NAME).exists():
            raise DataError(f"{folder}: holds shards that were not made here; {_REMEDY}") from error
        return None
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read ({cause}); {_REMEDY}") from error
    return stored if isinstance(stored, dict) else {}


def _values(cfg: PrepareConfig, split: str) -> dict[str, Any]:
    """The keys that count for a data set's source."""
    if cfg.source == "webdataset":
        shards = cfg.shards
        if not is_remote(shards):
            shards = os.path.abspath(Path(shards).expanduser())
        return {"source": cfg.source, "shards": shards, "split": cfg.split}
    values = {key: getattr(cfg, key) for key in (*_ALL, *_OWN.get(cfg.source, ()))}
    if cfg.source == "scenes":
        values["counts"] = cfg.counts.get(split)
    return values


def _inputs(cfg: PrepareConfig) -> list[list[str]]:
    """Name and content hash of each file with captions or splits."""
    return [[path.name, sha256_of(path)] for path in _input_files(cfg)]


def _input_files(cfg: PrepareConfig) -> list[Path]:
    """The files with captions and splits, which are hashed; images are not."""
    names: list[str] = []
    if cfg.source == "coco":
        names = [cfg.karpathy] if cfg.karpathy else list(cfg.annotations)
    elif cfg.source == "instruct":
        names = list(cfg.annotations)
    elif cfg.source in ("flickr8k", "folder"):
        names = [cfg.captions]
    elif cfg.source == "scienceqa":
        names = [*cfg.problems, *filter(None, (cfg.pid_splits, cfg.captions))]
    files = [Path(name).expanduser() for name in names]
    if cfg.source == "flickr8k":
        files += split_list_files(Path(cfg.split_lists).expanduser()).values()
    if cfg.source == "coco" and cfg.split_lists:
        files += coco_list_files(Path(cfg.split_lists).expanduser()).values()
    if cfg.source == "mme":
        files += question_files(Path(cfg.images).expanduser())
    return files
