"""Turns one data set into shards that can be read, split by split; what is done is left alone.

Raw data are written as shards (`shards.py`), shards of others get an index (`foreign.py`). Each
split's folder keeps the settings it was prepared with (`settings.py`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from pipeline.config import PrepareConfig
from pipeline.data.cache import cache_of
from pipeline.data.faults import ContentFault, describe
from pipeline.data.files import make_folder
from pipeline.data.finding import find_shards
from pipeline.data.foreign import drop_stale_indexes, index_shards
from pipeline.data.manifest import MANIFEST_NAME, SKIPPED_NAME, Manifest, load_manifest
from pipeline.data.progress import progress_bar
from pipeline.data.settings import check_settings, save_settings, settings_of
from pipeline.data.shards import write_part, write_split
from pipeline.data.sources import WEBDATASET, SourceRecord, load_source
from pipeline.errors import ConfigError, DataError

Report = Callable[[str], None]


def prepare(cfg: PrepareConfig, *, report: Report) -> dict[str, Manifest]:
    """Write (or index) the shards of all splits of a data set into `cfg.out`/<split>.

    Args:
        cfg: the data set and where its shards go.
        report: called with one line per split.

    Returns:
        Split -> manifest, of the splits that are complete: with `cfg.parts`, others may be writing.

    Raises:
        ConfigError: a key is not set or a path is missing; raised before anything is written.
        DataError: `out` holds shards of other settings, or no record could be written.
    """
    if not cfg.out:
        raise ConfigError("out='': is not set; set out to the folder that shall hold the shards")
    out = Path(cfg.out).expanduser()
    _check_part(cfg)
    if cfg.source == WEBDATASET:
        return {cfg.split: _index_split(cfg, out / cfg.split, report)}
    splits = load_source(cfg)
    settings = {split: settings_of(cfg, split) for split in splits}
    for split in splits:
        check_settings(out / split, settings[split])
    manifests = {}
    for split, records in splits.items():
        done = _finished(out / split, report)
        if done is None:
            make_folder(out / split)
            save_settings(out / split, settings[split])
            if cfg.parts > 1 and _write_part(cfg, out / split, records, report):
                continue  # whoever writes the last part completes the split
            done = _completed(cfg, out / split, records, report)
        manifests[split] = done
    return manifests


def _index_split(cfg: PrepareConfig, folder: Path, report: Report) -> Manifest:
    """Index the shards of others; what has not changed since the last time is only looked at."""
    cache = cache_of(cfg)
    base, names = find_shards(cfg.shards, cache.schemes)
    settings = settings_of(cfg, folder.name)
    check_settings(folder, settings)
    make_folder(folder)
    save_settings(folder, settings)
    with progress_bar(folder.name, len(names), "shards") as progress:
        manifest, faults = index_shards(
            base,
            names,
            folder,
            with_hash=cfg.hash,
            workers=cfg.workers,
            cache=cache,
            progress=progress,
        )
    _report(manifest, faults, len(names), "shards", report)
    if gone := drop_stale_indexes(manifest):
        report(f"{folder.name}: {len(gone)} shards are no longer there: {', '.join(gone)}")
    return manifest


def _write_split(
    cfg: PrepareConfig, folder: Path, records: Sequence[SourceRecord], report: Report
) -> Manifest:
    with progress_bar(folder.name, len(records), "records") as progress:
        manifest, faults = write_split(
            records,
            folder,
            seed=cfg.seed,
            records_per_shard=cfg.records_per_shard,
            workers=cfg.workers,
            progress=progress,
        )
    _report(manifest, faults, len(records), "records", report)
    return manifest


def _completed(
    cfg: PrepareConfig, folder: Path, records: Sequence[SourceRecord], report: Report
) -> Manifest:
    """The whole split, from one process at a time: the last two parts may end together."""
    if cfg.parts == 1:
        return _write_split(cfg, folder, records, report)
    with FileLock(folder / ".completing.lock"):
        return _finished(folder, report) or _write_split(cfg, folder, records, report)


def _write_part(
    cfg: PrepareConfig, folder: Path, records: Sequence[SourceRecord], report: Report
) -> int:
    """Writes this machine's shards; returns how many those of others still lack."""
    with progress_bar(folder.name, len(records) // cfg.parts, "records") as progress:
        written, missing = write_part(
            records,
            folder,
            seed=cfg.seed,
            records_per_shard=cfg.records_per_shard,
            workers=cfg.workers,
            part=cfg.part,
            parts=cfg.parts,
            progress=progress,
        )
    left = f"{missing} of other parts are not there yet" if missing else "all parts are there"
    report(f"{folder.name}: part {cfg.part} of {cfg.parts}: {written} shards written; {left}")
    return missing


def _check_part(cfg: PrepareConfig) -> None:
    if cfg.part >= cfg.parts:
        raise ConfigError(f"part={cfg.part}: parts are counted from 0 to parts={cfg.parts} less 1")
    if cfg.parts > 1 and cfg.source == WEBDATASET:
        raise ConfigError(
            f"parts={cfg.parts}: shards that are there are indexed by one machine; leave it out"
        )


def _finished(folder: Path, report: Report) -> Manifest | None:
    """The manifest of a split that is complete; None where something is left to write."""
    try:
        if not (folder / MANIFEST_NAME).exists():
            return None
        manifest = load_manifest(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); mend its rights") from error
    except DataError as error:
        report(f"{folder.name}: writing again what is damaged: {error}")
        return None
    skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(manifest.skipped.items()))
    report(
        f"{folder.name}: complete already, left alone: {_size(manifest)}, "
        f"skipped: {skipped or 'none'}"
    )
    return manifest


def _report(
    manifest: Manifest, faults: Sequence[ContentFault], found: int, unit: str, report: Report
) -> None:
    """Say what a split holds now, and what was skipped and why."""
    folder = manifest.folder
    if found and not manifest.records:
        raise DataError(
            f"{folder}: none of {found} {unit} could be used ({describe(faults)}); "
            "check the paths, delete this folder and run again"
        )
    where = f" (all of them in {folder / SKIPPED_NAME})" if faults else ""
    report(f"{folder.name}: {_size(manifest)}, skipped: {describe(faults)}{where}")


def _size(manifest: Manifest) -> str:
    return (
        f"{manifest.records} records in {len(manifest.shards)} shards, "
        f"{manifest.bytes / 1e6:.1f} MB"
    )
