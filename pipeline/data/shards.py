"""Writes the records of a split as WebDataset tars, each with an index, and their manifest.

The same records, seed and shard size give the same bytes, with any number of workers and after any
number of restarts. Two writers must not work on one folder at the same time. Images are stored as
they come, undecoded; a record without a readable file or without captions is skipped, counted and
listed in `skipped.jsonl`.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.faults import ContentFault, from_note, tally, to_note, write_faults
from pipeline.data.files import LASTING, atomic_file, make_folder, sha256_of
from pipeline.data.index import captions_of, read_index, save_index
from pipeline.data.manifest import (
    MANIFEST_NAME,
    SKIPPED_NAME,
    Manifest,
    ShardEntry,
    index_path,
    save_manifest,
)
from pipeline.data.parallel import run_all
from pipeline.data.scan import build_index
from pipeline.data.sources.record import LONGEST_KEY, SourceRecord
from pipeline.errors import DataError


@dataclass(frozen=True)
class _Task:
    """One shard to be written."""

    path: Path
    records: tuple[SourceRecord, ...]


@dataclass(frozen=True)
class _Written:
    """A finished shard, and the records that are not in it."""

    entry: ShardEntry
    faults: list[ContentFault]


def write_split(
    records: Sequence[SourceRecord],
    folder: Path,
    *,
    seed: int,
    records_per_shard: int,
    workers: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[Manifest, list[ContentFault]]:
    """Shuffle the records and write them as shards; what is already there is not written again.

    A finished shard is kept when its hash is right and its records have the same keys and texts.
    That an image file changed since is not noticed: use another folder for other images.

    Args:
        records: of the split; keys must be unique. Picklable when `workers` > 0.
        folder: of the split; made when missing.
        seed: of the shuffle.
        records_per_shard: of the input; skipped records make a shard smaller.
        workers: processes; 0 writes in this one.
        progress: called with the number of records that are done since the last call.

    Returns:
        The manifest, and the skipped records: those with a fault, then in the order of the shards.

    Raises:
        DataError: keys are not unique or not usable, a file cannot be written, a worker died.
    """
    tasks, faults = _tasks(records, folder, seed, records_per_shard)
    # Without its manifest the folder counts as unfinished, should this run be killed.
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    if progress is not None:
        progress(len(faults))
    done: dict[int, _Written] = {}
    for number, written in run_all(_finish_shard, tasks, workers):
        done[number] = written
        if progress is not None:
            progress(len(tasks[number].records))
    shards = [done[number] for number in range(len(tasks))]
    faults += [fault for shard in shards for fault in shard.faults]
    write_faults(folder / SKIPPED_NAME, faults)
    manifest = Manifest(folder, tuple(shard.entry for shard in shards), tally(faults))
    save_manifest(manifest)
    return manifest, faults


def write_part(
    records: Sequence[SourceRecord],
    folder: Path,
    *,
    seed: int,
    records_per_shard: int,
    workers: int,
    part: int,
    parts: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[int, int]:
    """Write the shards whose number is `part` modulo `parts`, and no manifest.

    Several machines may do so at the same time, each with its own `part`. `write_split` then finds
    all shards there. Arguments and faults are those of `write_split`.

    Returns:
        How many shards this part has, and how many of other parts are not there yet.
    """
    tasks = _tasks(records, folder, seed, records_per_shard)[0]
    mine = tasks[part::parts]
    for number, _ in run_all(_finish_shard, mine, workers):
        if progress is not None:
            progress(len(mine[number].records))
    return len(mine), sum(not index_path(each.path).is_file() for each in tasks)


def _tasks(
    records: Sequence[SourceRecord], folder: Path, seed: int, records_per_shard: int
) -> tuple[list[_Task], list[ContentFault]]:
    """What each shard holds, and what the source could not use of the records."""
    _check_keys(records)
    make_folder(folder)
    # What the source could not use is not shared out: shards would differ in size, or be empty.
    usable = [record for record in records if record.fault is None]
    faults = [record.fault for record in records if record.fault is not None]
    order = np.random.default_rng(seed).permutation(len(usable))
    tasks = [
        _Task(
            folder / f"shard-{number:06d}.tar",
            tuple(usable[i] for i in order[first : first + records_per_shard]),
        )
        for number, first in enumerate(range(0, len(order), records_per_shard))
    ]
    return tasks, faults


def _check_keys(records: Sequence[SourceRecord]) -> None:
    """Tar members are named after keys: duplicates or dots would mix records up."""
    seen: set[str] = set()
    for record in records:
        if record.key in seen:
            raise DataError(f"key {record.key!r}: two records have it; make the keys unique")
        too_long = len(record.key.encode()) > LONGEST_KEY
        if not record.key or too_long or "." in record.key or "/" in record.key:
            raise DataError(
                f"key {record.key!r}: empty, longer than {LONGEST_KEY} bytes, or with a dot or "
                "slash; rename the record"
            )
        seen.add(record.key)


def _finish_shard(task: _Task) -> _Written:
    """Return the shard of a task, written now if it is not there yet."""
    inputs = _inputs_hash(task.records)
    finished = _finished(task.path, inputs)
    if finished is not None:
        return finished
    faults = _write_tar(task)
    index, missing = build_index(task.path)
    faults += missing
    entry = ShardEntry(task.path.name, task.path.stat().st_size, len(index), sha256_of(task.path))
    # The index comes last: a shard counts as finished only when it has one.
    save_index(index, index_path(task.path), entry, inputs=inputs, faults=to_note(faults))
    return _Written(entry, faults)


def _finished(path: Path, inputs: str) -> _Written | None:
    """The entry of a shard that an earlier run finished from the same records, else None."""
    if not path.is_file() or not index_path(path).is_file():
        return None
    try:
        _, entry, notes = read_index(index_path(path))
    except DataError:
        return None
    if notes.get("inputs") != inputs or entry.sha256 != sha256_of(path):
        return None
    return _Written(entry, from_note(notes["faults"]))


def _content(record: SourceRecord) -> bytes:
    """The JSON member of a record."""
    data = {"captions": list(record.captions), "image_id": record.image_id, **record.extra}
    if record.image is None:
        data["image"] = None  # says that none is missing, see scan.py
    return json.dumps(data, ensure_ascii=False).encode(errors="replace")


def _inputs_hash(records: Sequence[SourceRecord]) -> str:
    digest = hashlib.sha256()
    for record in records:
        digest.update(f"{record.key}\n".encode(errors="replace"))
        digest.update(_content(record) + b"\n")
    return digest.hexdigest()


def _write_tar(task: _Task) -> list[ContentFault]:
    """Write the tar of a task; return what was skipped."""
    # Imported here because webdataset brings torch along, which readers of this module's other
    # functions need not wait for.
    from webdataset.writer import TarWriter

    faults = []
    # Fixed owner, mode and time: the same records must give the same bytes. A time with a decimal
    # point, even 0.0, would cost each member a header of its own, 1 kB.
    fixed = {"user": "", "group": "", "mode": 0o644, "mtime": 0}
    with atomic_file(task.path) as file, TarWriter(file, encoder=False, **fixed) as tar:
        for record in task.records:
            try:
                image = _image(record)
            except ContentFault as fault:
                faults.append(ContentFault(fault.reason, key=record.key, detail=fault.detail))
                continue
            tar.write({"__key__": record.key, **image, "json": _content(record)})
    return faults


def _image(record: SourceRecord) -> dict[str, bytes]:
    """The record's image by its extension, if any; a ContentFault where it is of no use."""
    if not captions_of({"captions": list(record.captions)}):
        raise ContentFault("no captions")
    if record.image is None:
        return {}
    try:
        image, extension = record.image()
    except FileNotFoundError as error:
        raise ContentFault("missing image", detail=str(error.filename or "")) from error
    except LASTING as error:
        raise ContentFault("unreadable image", detail=str(error)) from error
    return {extension: image}
