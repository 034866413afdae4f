"""Verifies shards against their manifest: every file, every index, every image and text.

Reads everything once and changes nothing but `check.json`, its report beside the manifest. A fault
of one shard or record never hides those of others.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.faults import ContentFault, tally
from pipeline.data.files import atomic_file, sha256_of
from pipeline.data.index import load_index
from pipeline.data.manifest import MANIFEST_NAME, Manifest, check_file, read_manifest
from pipeline.data.parallel import run_all
from pipeline.data.progress import progress_bar
from pipeline.data.reader import ShardReader
from pipeline.data.scan import build_index
from pipeline.errors import DataError

REPORT_NAME = "check.json"
_EXAMPLES = 5  # faults that the report spells out, of each reason

Hashes = NDArray[np.uint64]


@dataclass
class SplitReport:
    """What the check of one split found."""

    folder: Path
    shards: int
    records: int
    faults: list[ContentFault] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report for people: counts by reason, and the first faults of each."""
        head = f"{self.folder}: {self.records} records in {self.shards} shards"
        if not self.faults:
            return [f"{head}: all well"]
        found = [f"{head}: {len(self.faults)} faults"]
        for reason, count in sorted(tally(self.faults).items()):
            found.append(f"  {count} {reason}")
            found += [f"    {fault}" for fault in self._examples(reason)]
        return found

    def save(self) -> None:
        """Write `check.json` beside the manifest; raises DataError where that is not possible."""
        counts = tally(self.faults)
        content = {
            "shards": self.shards,
            "records": self.records,
            "faults": dict(sorted(counts.items())),
            "examples": {
                reason: [
                    {"shard": fault.shard, "key": fault.key, "detail": fault.detail}
                    for fault in self._examples(reason)
                ]
                for reason in sorted(counts)
            },
        }
        with atomic_file(self.folder / REPORT_NAME) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())

    def _examples(self, reason: str) -> list[ContentFault]:
        return [fault for fault in self.faults if fault.reason == reason][:_EXAMPLES]


@dataclass(frozen=True)
class _Task:
    """One shard to be checked."""

    manifest: Manifest
    shard: int
    max_pixels: int
    max_image_bytes: int | None


def check_folder(
    folder: Path,
    *,
    workers: int,
    max_pixels: int,
    max_image_bytes: int | None = None,
    report: Callable[[str], None],
) -> bool:
    """Check a split, or all splits in a folder.

    Args:
        folder: one with a manifest, or the folder above such.
        workers: processes; 0 works in this one.
        max_pixels, max_image_bytes: larger images count as faults, as they do in training.
        report: called with each line of the report.

    Returns:
        True when nothing is wrong.

    Raises:
        DataError: there is no manifest, or one that cannot be read.
    """
    well = True
    for split in find_splits(folder):
        found = check_split(
            split, workers=workers, max_pixels=max_pixels, max_image_bytes=max_image_bytes
        )
        for line in found.lines():
            report(line)
        try:
            found.save()
        except DataError as error:  # a folder that may only be read can be checked all the same
            report(f"  no {REPORT_NAME}: {error}")
        well = well and not found.faults
    return well


def find_splits(folder: Path) -> list[Path]:
    """Return `folder` itself where it has a manifest, else its sub-folders that hold shards.

    Raises:
        DataError: there are none.
    """
    if (folder / MANIFEST_NAME).is_file():
        return [folder]
    kept = (MANIFEST_NAME, "*.tar")  # a split without manifest is an unfinished one, and told
    found = sorted({path.parent for name in kept for path in folder.glob(f"*/{name}")})
    if not found:
        raise DataError(
            f"{folder}: neither a {MANIFEST_NAME} nor splits that have one; name others"
        )
    return found


def check_split(
    folder: Path, *, workers: int, max_pixels: int, max_image_bytes: int | None = None
) -> SplitReport:
    """Check one split.

    Raises:
        DataError: its manifest cannot be read.
    """
    manifest = read_manifest(folder)
    shards = range(len(manifest.shards))
    tasks = [_Task(manifest, shard, max_pixels, max_image_bytes) for shard in shards]
    done: dict[int, tuple[list[ContentFault], Hashes]] = {}
    with progress_bar(folder.name, manifest.records, "records") as progress:
        for number, result in run_all(_check_shard, tasks, workers):
            done[number] = result
            progress(manifest.shards[number].records)
    faults = [fault for number in range(len(tasks)) for fault in done[number][0]]
    faults += _repeated(manifest, [done[number][1] for number in range(len(tasks))])
    return SplitReport(folder, len(tasks), manifest.records, faults)


def _check_shard(task: _Task) -> tuple[list[ContentFault], Hashes]:
    """All faults of one shard, and a hash of each of its keys."""
    manifest, number = task.manifest, task.shard
    entry = manifest.shards[number]
    faults: list[ContentFault] = []

    def note(reason: str, error: object) -> None:
        faults.append(ContentFault(reason, entry.name, detail=str(error)))

    nothing = np.zeros(0, dtype=np.uint64)
    try:
        path = manifest.path(number)
    except DataError as error:  # of a remote shard
        note("shard missing or changed", error)
        return faults, nothing
    try:
        check_file(path, entry)
    except DataError as error:
        note("shard missing or changed", error)
        if not path.is_file():
            return faults, nothing
    try:
        if entry.sha256 is not None and sha256_of(path) != entry.sha256:
            note("shard has another hash", f"the manifest says {entry.sha256}")
        fresh, _ = build_index(path)
    except (DataError, OSError) as error:
        note("unreadable shard", error)
        return faults, nothing
    try:
        index = load_index(manifest, number)
    except DataError as error:
        note("index missing or of another shard", error)
        return faults, nothing
    differing = index.differences(fresh)
    if differing:
        note("index does not fit the shard", f"in {', '.join(differing)}")
    if not set(differing) <= {"text_bytes", "captions"}:  # nothing is where it should be
        return faults, nothing
    faults += _check_records(task, len(index))
    return faults, _hashes([index.key(record) for record in range(len(index))])


def _check_records(task: _Task, records: int) -> list[ContentFault]:
    """Records whose text or image cannot be used."""
    reader = ShardReader(
        task.manifest, max_pixels=task.max_pixels, max_image_bytes=task.max_image_bytes
    )
    faults = []
    for record in range(records):
        try:
            reader.image(reader.read(task.shard, record))
        except ContentFault as fault:
            faults.append(fault)
        except DataError as error:
            name = task.manifest.shards[task.shard].name
            return [*faults, ContentFault("unreadable shard", name, detail=str(error))]
    reader.close()
    return faults


def _hashes(keys: Sequence[str]) -> Hashes:
    digests = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys]
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def _repeated(manifest: Manifest, hashes: Sequence[Hashes]) -> list[ContentFault]:
    """Keys that more than one shard has; results of such records could not be told apart."""
    everything = np.concatenate([np.zeros(0, dtype=np.uint64), *hashes])
    values, counts = np.unique(everything, return_counts=True)
    repeated = values[counts > 1]
    faults = []
    for number, found in enumerate(hashes):
        for record in np.flatnonzero(np.isin(found, repeated)):
            key = load_index(manifest, number).key(int(record))
            name = manifest.shards[number].name
            faults.append(ContentFault("key in several shards", name, key))
    return faults
