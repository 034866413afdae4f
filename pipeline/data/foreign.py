"""Gives shards that somebody else made (img2dataset, webdataset) a manifest and indexes.

The shards stay where they are and are only read; what is made lies in a folder of its own. Shards
may lie in sub-folders, or on a server: then each is fetched once to be indexed. Tars must be
uncompressed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.cache import ShardCache
from pipeline.data.faults import ContentFault, from_note, tally, to_note, write_faults
from pipeline.data.files import make_folder, sha256_of
from pipeline.data.index import ShardIndex, read_index, save_index
from pipeline.data.manifest import (
    INDEX_SUFFIX,
    MANIFEST_NAME,
    SKIPPED_NAME,
    Manifest,
    ShardEntry,
    index_path,
    save_manifest,
)
from pipeline.data.parallel import run_all
from pipeline.data.remote import is_remote
from pipeline.data.scan import build_index
from pipeline.errors import DataError

_NAMED = 3  # refused shards that the error names


@dataclass(frozen=True)
class _Task:
    """One shard to be indexed."""

    base: str  # folder or URL
    name: str  # below it, as the manifest has it
    index: Path
    with_hash: bool
    cache: ShardCache

    @property
    def where(self) -> str:
        """The shard's path or URL."""
        return f"{self.base}/{self.name}"

    def state(self) -> tuple[int | None, int | None]:
        """Bytes and modification time (ns) as far as they can be had without reading the shard."""
        if is_remote(self.base):
            return self.cache.size(self.where), None
        found = Path(self.where).stat()
        return found.st_size, found.st_mtime_ns

    def tar(self, size: int | None) -> Path:
        """The shard's local path, fetched where it is remote and not here in this size."""
        if is_remote(self.base):
            return self.cache.fetch(self.where, size=size)
        return Path(self.where)


@dataclass(frozen=True)
class _Indexed:
    """The entry of a shard and what is not in its index, or why it was refused."""

    entry: ShardEntry | None
    faults: list[ContentFault]
    refusal: str = ""


def index_shards(
    base: str,
    names: Sequence[str],
    folder: Path,
    *,
    with_hash: bool,
    workers: int,
    cache: ShardCache,
    progress: Callable[[int], None] | None = None,
) -> tuple[Manifest, list[ContentFault]]:
    """Index shards and write their manifest; indexes of unchanged shards are kept.

    Unchanged means: of the same size and modification time; of a remote shard, of the same size.

    Args:
        base: the folder or URL that all shards lie below.
        names: of the shards there.
        folder: where the manifest and the indexes go.
        with_hash: also compute each shard's SHA-256, which reads all of it.
        workers: processes; 0 works in this one.
        cache: through which remote shards come; should hold one for each worker at least.
        progress: called with the number of shards that are done since the last call.

    Returns:
        The manifest, and what is not in it, shard by shard.

    Raises:
        DataError: a shard is no plain tar, or cut short; the others are indexed all the same.
    """
    make_folder(folder)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    tasks = [_Task(base, name, index_path(folder / name), with_hash, cache) for name in names]
    done: dict[int, _Indexed] = {}
    for number, indexed in run_all(_index, tasks, workers):
        done[number] = indexed
        if progress is not None:
            progress(1)
    shards = [done[number] for number in range(len(tasks))]
    refused = [shard.refusal for shard in shards if shard.refusal]
    if refused:
        more = f"; and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
        raise DataError(
            f"{len(refused)} of {len(shards)} shards cannot be used, the others are indexed: "
            f"{' | '.join(refused[:_NAMED])}{more}"
        )
    faults = [fault for shard in shards for fault in shard.faults]
    write_faults(folder / SKIPPED_NAME, faults)
    entries = tuple(shard.entry for shard in shards if shard.entry is not None)
    manifest = Manifest(folder, entries, tally(faults), at=base)
    save_manifest(manifest)
    return manifest, faults


def drop_stale_indexes(manifest: Manifest) -> list[str]:
    """Remove the indexes of shards that are no longer there; return these, without `.tar`."""
    folder = manifest.folder
    used = {manifest.index_path(shard) for shard in range(len(manifest.shards))}
    stale = sorted(set(folder.rglob(f"*{INDEX_SUFFIX}")) - used)
    for path in stale:
        path.unlink()
    return [path.relative_to(folder).as_posix().removesuffix(INDEX_SUFFIX) for path in stale]


def _index(task: _Task) -> _Indexed:
    """Index one shard, unless that was done already."""
    try:
        before = task.state()
        kept = _kept(task, *before)
        if kept is not None:
            return kept
        tar = task.tar(before[0])
        size = tar.stat().st_size
        index, faults = _scan(tar, task.where)
        digest = sha256_of(tar) if task.with_hash else None
        after = task.state()
    except OSError as error:
        cause = f"cannot be read ({error.strerror}); mend its rights"
        return _Indexed(None, [], f"{task.where}: {cause}")
    except DataError as error:
        return _Indexed(None, [], str(error))
    if before != after:
        return _Indexed(None, [], f"{task.where}: is being written; run again when it is complete")
    entry = ShardEntry(task.name, size, len(index), digest, after[1])
    make_folder(task.index.parent)
    save_index(index, task.index, entry, faults=to_note(faults))
    return _Indexed(entry, faults)


def _scan(tar: Path, where: str) -> tuple[ShardIndex, list[ContentFault]]:
    """`build_index`, whose error names the shard and not the fetched copy of it."""
    try:
        return build_index(tar)
    except DataError as error:
        raise DataError(str(error).replace(str(tar), where)) from error


def _kept(task: _Task, size: int | None, mtime_ns: int | None) -> _Indexed | None:
    """What an earlier run found in a shard that has not changed since, else None."""
    if not task.index.is_file():
        return None
    try:
        _, entry, notes = read_index(task.index)
    except DataError:
        return None
    same = (entry.name, entry.bytes, entry.mtime_ns) == (task.name, size, mtime_ns)
    if not same or "faults" not in notes or (task.with_hash and entry.sha256 is None):
        return None
    return _Indexed(entry, from_note(notes["faults"]))
