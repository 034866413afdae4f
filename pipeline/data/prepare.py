"""Turns one raw data set into shards, split by split; what is done already is left alone.

Each split's folder keeps the settings it was prepared with in `prepare.json`, so that shards of
other settings are never mixed in or taken for these. That image files changed since is not noticed.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.config import PrepareConfig
from pipeline.data.files import atomic_file, make_folder, sha256_of
from pipeline.data.manifest import MANIFEST_NAME, Manifest, load_manifest
from pipeline.data.shards import write_split
from pipeline.data.sources import SourceRecord, load_source
from pipeline.data.sources.coco import coco_list_files
from pipeline.data.sources.flickr8k import split_list_files
from pipeline.errors import ConfigError, DataError

SETTINGS_NAME = "prepare.json"


def prepare(cfg: PrepareConfig, *, report: Callable[[str], None]) -> dict[str, Manifest]:
    """Write the shards of all splits of a data set into `cfg.out`/<split>.

    Args:
        cfg: the data set and where its shards go.
        report: called with one line per split.

    Returns:
        Split -> manifest.

    Raises:
        ConfigError: a key is not set or a path is missing; raised before anything is written.
        DataError: `out` holds shards of other settings, or no record could be written.
    """
    if not cfg.out:
        raise ConfigError("out='': is not set; set out to the folder that shall hold the shards")
    splits = load_source(cfg)
    settings = {split: _settings(cfg, split) for split in splits}
    out = Path(cfg.out).expanduser()
    for split in splits:
        _check_settings(out / split, settings[split])
    return {
        split: _prepare_split(cfg, out / split, records, settings[split], report)
        for split, records in splits.items()
    }


def _prepare_split(
    cfg: PrepareConfig,
    folder: Path,
    records: Sequence[SourceRecord],
    settings: dict[str, Any],
    report: Callable[[str], None],
) -> Manifest:
    split = folder.name
    done = _finished(folder, report)
    if done is not None:
        report(f"{split}: complete already, left alone: {_describe(done)}")
        return done
    make_folder(folder)
    with atomic_file(folder / SETTINGS_NAME) as file:
        file.write((json.dumps(settings, indent=1, sort_keys=True) + "\n").encode())
    # A log file is no terminal: there, a line now and then is enough.
    interval = 0.5 if sys.stderr.isatty() else 30.0
    with tqdm(
        total=len(records), desc=split, unit="rec", mininterval=interval, file=sys.stderr
    ) as bar:
        manifest, _ = write_split(
            records,
            folder,
            seed=cfg.seed,
            records_per_shard=cfg.records_per_shard,
            workers=cfg.workers,
            progress=bar.update,
        )
    if records and not manifest.records:
        raise DataError(
            f"{folder}: none of {len(records)} records could be written "
            f"({_reasons(manifest.skipped)}); check the paths, delete this folder and run again"
        )
    report(f"{split}: {_describe(manifest)}")
    return manifest


def _finished(folder: Path, report: Callable[[str], None]) -> Manifest | None:
    """The manifest of a split that is complete; None where something is left to write."""
    if not (folder / MANIFEST_NAME).exists():
        return None
    try:
        return load_manifest(folder)
    except DataError as error:
        report(f"{folder.name}: writing again what is damaged: {error}")
        return None


def _describe(manifest: Manifest) -> str:
    return (
        f"{manifest.records} records in {len(manifest.shards)} shards, "
        f"{manifest.bytes / 1e6:.1f} MB, skipped: {_reasons(manifest.skipped)}"
    )


def _reasons(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) or "none"


def _settings(cfg: PrepareConfig, split: str) -> dict[str, Any]:
    """Everything that decides the bytes of a split's shards, as it goes into `prepare.json`."""
    settings = asdict(cfg)
    # The input files count by their content, so that they may be moved.
    for key in ("out", "workers", "annotations", "karpathy", "captions", "split_lists"):
        del settings[key]
    if cfg.source == "scenes":
        settings["counts"] = cfg.counts[split]
    else:
        # What other sources draw from is theirs alone, a new default there must not matter here.
        for key in ("counts", "style", "image_size"):
            del settings[key]
    settings["inputs"] = [[path.name, sha256_of(path)] for path in _input_files(cfg)]
    return settings


def _input_files(cfg: PrepareConfig) -> list[Path]:
    """The files with captions and splits, which are hashed; images are not."""
    if cfg.source == "coco":
        names = [cfg.karpathy] if cfg.karpathy else list(cfg.annotations)
        lists = coco_list_files(Path(cfg.split_lists).expanduser()) if cfg.split_lists else {}
        return [*(Path(name).expanduser() for name in names), *lists.values()]
    if cfg.source == "flickr8k":
        lists = split_list_files(Path(cfg.split_lists).expanduser())
        return [Path(cfg.captions).expanduser(), *lists.values()]
    return []


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder that holds shards of other settings, or of unknown ones."""
    path = folder / SETTINGS_NAME
    remedy = "set out to another folder, or delete this one"
    try:
        stored = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        if any(folder.glob("*.tar")) or (folder / MANIFEST_NAME).exists():
            raise DataError(f"{folder}: holds shards that were not made here; {remedy}") from error
        return
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read ({cause}); {remedy}") from error
    if stored == settings:
        return
    known = stored if isinstance(stored, dict) else {}
    differing = sorted(k for k in {*known, *settings} if known.get(k) != settings.get(k))
    changes = ", ".join(f"{k} was {known.get(k)!r}, is {settings.get(k)!r}" for k in differing)
    raise DataError(f"{folder}: was prepared with other settings ({changes}); {remedy}")
