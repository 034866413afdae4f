"""Writes the records of a split as WebDataset tars, each with an index, and their manifest.

The same records, seed and shard size give the same bytes, with any number of workers and after any
number of restarts. Two writers must not work on one folder at the same time. Images are stored as
they come, undecoded; a record without a readable file or without captions is skipped and counted.
"""

import hashlib
import json
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.files import atomic_file, make_folder, sha256_of
from pipeline.data.images import ContentFault
from pipeline.data.index import build_index, captions_of, read_index, save_index
from pipeline.data.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    index_path,
    save_manifest,
)
from pipeline.data.sources.record import SourceRecord
from pipeline.errors import DataError

_LONGEST_KEY = 90  # bytes; a tar header has room for 100, extension included


@dataclass(frozen=True)
class _Task:
    """One shard to be written."""

    path: Path
    records: tuple[SourceRecord, ...]


def write_split(
    records: Sequence[SourceRecord],
    folder: Path,
    *,
    seed: int,
    records_per_shard: int,
    workers: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[Manifest, Counter[str]]:
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
        The manifest, and the skipped records by reason.

    Raises:
        DataError: keys are not unique or not usable, a file cannot be written, a worker died.
    """
    _check_keys(records)
    make_folder(folder)
    # Without its manifest the folder counts as unfinished, should this run be killed.
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    order = np.random.default_rng(seed).permutation(len(records))
    tasks = [
        _Task(
            folder / f"shard-{number:06d}.tar",
            tuple(records[i] for i in order[first : first + records_per_shard]),
        )
        for number, first in enumerate(range(0, len(order), records_per_shard))
    ]
    done: dict[Path, tuple[ShardEntry, Counter[str]]] = {}
    for task, result in _run(tasks, workers):
        done[task.path] = result
        if progress is not None:
            progress(len(task.records))
    skipped: Counter[str] = Counter()
    for task in tasks:
        skipped.update(done[task.path][1])
    manifest = Manifest(folder, tuple(done[task.path][0] for task in tasks), dict(skipped))
    save_manifest(manifest)
    return manifest, skipped


def index_folder(folder: Path) -> Manifest:
    """Index the tars that somebody else wrote into `folder`, and give them a manifest.

    Raises:
        DataError: there are no tars, or there is a manifest already, or a tar cannot be read.
    """
    tars = sorted(folder.glob("*.tar"))
    if not tars or (folder / MANIFEST_NAME).exists():
        found = "a manifest already" if tars else "no *.tar"
        raise DataError(f"{folder}: there is {found}; name a folder of shards without manifest")
    entries = []
    skipped: Counter[str] = Counter()
    for tar in tars:
        index, missing = build_index(tar)
        save_index(index, index_path(tar))
        entries.append(ShardEntry(tar.name, tar.stat().st_size, len(index)))
        skipped.update(missing)
    manifest = Manifest(folder, tuple(entries), dict(skipped))
    save_manifest(manifest)
    return manifest


def _check_keys(records: Sequence[SourceRecord]) -> None:
    """Tar members are named after keys: duplicates or dots would mix records up."""
    seen: set[str] = set()
    for record in records:
        if record.key in seen:
            raise DataError(f"key {record.key!r}: two records have it; make the keys unique")
        too_long = len(record.key.encode()) > _LONGEST_KEY
        if not record.key or too_long or "." in record.key or "/" in record.key:
            raise DataError(
                f"key {record.key!r}: empty, longer than {_LONGEST_KEY} bytes, or with a dot or "
                "slash; rename the record"
            )
        seen.add(record.key)


def _run(
    tasks: Sequence[_Task], workers: int
) -> Iterator[tuple[_Task, tuple[ShardEntry, Counter[str]]]]:
    """Yield every task with its result as it is done, in any order."""
    if workers == 0 or len(tasks) < 2:
        for task in tasks:
            yield task, _finish_shard(task)
        return
    # Spawned, not forked: the caller may hold threads or a GPU already.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        running = {pool.submit(_finish_shard, task): task for task in tasks}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BrokenProcessPool as error:
            raise DataError(
                f"workers={workers}: a writing process died (out of memory?); "
                "run again with fewer workers, what is finished is kept"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _finish_shard(task: _Task) -> tuple[ShardEntry, Counter[str]]:
    """Return the shard of a task, written now if it is not there yet."""
    inputs = _inputs_hash(task.records)
    finished = _finished(task.path, inputs)
    if finished is not None:
        return finished
    skipped = _write_tar(task)
    index, missing = build_index(task.path)
    skipped.update(missing)
    entry = ShardEntry(task.path.name, task.path.stat().st_size, len(index), sha256_of(task.path))
    note = json.dumps(dict(sorted(skipped.items())))
    # The index comes last: a shard counts as finished only when it has one.
    digest = entry.sha256 or ""
    save_index(index, index_path(task.path), sha256=digest, inputs=inputs, skipped=note)
    return entry, skipped


def _finished(path: Path, inputs: str) -> tuple[ShardEntry, Counter[str]] | None:
    """The entry of a shard that an earlier run finished from the same records, else None."""
    if not path.is_file() or not index_path(path).is_file():
        return None
    try:
        index, note = read_index(index_path(path))
    except DataError:
        return None
    if note.get("inputs") != inputs or note.get("sha256") != sha256_of(path):
        return None
    entry = ShardEntry(path.name, path.stat().st_size, len(index), note["sha256"])
    return entry, Counter(json.loads(note["skipped"]))


def _content(record: SourceRecord) -> bytes:
    """The JSON member of a record."""
    data = {"captions": list(record.captions), "image_id": record.image_id, **record.extra}
    return json.dumps(data, ensure_ascii=False).encode(errors="replace")


def _inputs_hash(records: Sequence[SourceRecord]) -> str:
    digest = hashlib.sha256()
    for record in records:
        digest.update(f"{record.key}\n".encode() + _content(record) + b"\n")
    return digest.hexdigest()


def _write_tar(task: _Task) -> Counter[str]:
    """Write the tar of a task; return what was skipped, by reason."""
    # Imported here because webdataset brings torch along, which readers of this module's other
    # functions need not wait for.
    from webdataset.writer import TarWriter

    skipped: Counter[str] = Counter()
    # Fixed owner, mode and time: the same records must give the same bytes.
    fixed = {"user": "", "group": "", "mode": 0o644, "mtime": 0.0}
    with atomic_file(task.path) as file, TarWriter(file, encoder=False, **fixed) as tar:
        for record in task.records:
            try:
                image, extension = _image(record)
            except ContentFault as fault:
                skipped[fault.reason] += 1
                continue
            tar.write({"__key__": record.key, extension: image, "json": _content(record)})
    return skipped


def _image(record: SourceRecord) -> tuple[bytes, str]:
    """The record's image and its extension; a ContentFault where the record is of no use."""
    if not captions_of({"captions": list(record.captions)}):
        raise ContentFault("no captions", key=record.key)
    try:
        return record.image()
    except FileNotFoundError as error:
        raise ContentFault("missing image", key=record.key) from error
    except OSError as error:
        raise ContentFault("unreadable image", key=record.key, detail=str(error)) from error
