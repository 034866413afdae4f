"""Gives shards that somebody else made (img2dataset, webdataset) a manifest and indexes.

The shards stay where they are and are only read; what is made lies in a folder of its own. Shards
may lie in sub-folders. Tars must be local and uncompressed.
"""

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from braceexpand import braceexpand

from pipeline.data.faults import ContentFault, from_note, tally, to_note, write_faults
from pipeline.data.files import make_folder, sha256_of
from pipeline.data.index import read_index, save_index
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
from pipeline.data.scan import build_index
from pipeline.errors import ConfigError, DataError

_MAGIC = re.compile(r"[*?\[{]")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_NAMED = 3  # refused shards that the error names


def find_shards(shards: str) -> tuple[Path, list[Path]]:
    """Find the tars that a folder or a pattern names.

    Args:
        shards: a folder (with its sub-folders), or a pattern with *, ?, [..], {a,b} or {000..123}.

    Returns:
        The folder that all lie in, absolute, and the paths of the tars in order of their names.

    Raises:
        ConfigError: it is not set or a URL, names nothing, or names compressed tars.
    """
    if not shards or "://" in shards or shards.startswith("pipe:"):
        reason = "not a local path" if shards else "is not set"
        raise ConfigError(
            f"shards={shards!r}: {reason}; set shards to a folder of tars or a pattern such as "
            "/data/cc3m/{00000..00331}.tar"
        )
    path = Path(os.path.abspath(Path(shards).expanduser()))
    if path.is_dir():
        base, found = path, list(_files(shards, path))
    else:
        base, found = _matching(shards, path)
    compressed = [each for each in found if each.name.endswith(_COMPRESSED)]
    if compressed:
        raise ConfigError(
            f"shards={shards!r}: {compressed[0]} is compressed, so records cannot be read by their "
            "place; unpack it to a plain .tar"
        )
    tars = sorted(each for each in found if each.suffix == ".tar" and not _hidden(each, base))
    if not tars:
        raise ConfigError(f"shards={shards!r}: names no *.tar; set shards to what holds them")
    return base, tars


def _files(shards: str, folder: Path) -> Iterator[Path]:
    """All files in a folder, through links too; a sub-folder that cannot be read is an error."""

    def refuse(error: OSError) -> None:
        raise ConfigError(
            f"shards={shards!r}: {error.filename} cannot be read ({error.strerror}); mend its "
            "rights, or name another folder"
        ) from error

    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        if real in seen:  # links that lead round in a circle
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place) / name for name in files)


def _matching(shards: str, path: Path) -> tuple[Path, list[Path]]:
    """The folder above the first wildcard, and the files that a pattern names."""
    parts = path.parts
    plain = next((i for i, part in enumerate(parts) if _MAGIC.search(part)), len(parts) - 1)
    try:
        patterns = list(braceexpand(str(path)))
    except ValueError as error:
        raise ConfigError(f"shards={shards!r}: {error}; write braces as {{000..123}}") from error
    found: dict[Path, None] = {}
    for pattern in patterns:
        names = glob.glob(pattern, recursive=True)
        if not names:
            raise ConfigError(f"shards={shards!r}: {pattern} is not there; name what is there")
        found.update((Path(name), None) for name in names)
    return Path(*parts[:plain]), [each for each in found if each.is_file()]


def _hidden(path: Path, base: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(base).parts)


@dataclass(frozen=True)
class _Task:
    """One shard to be indexed."""

    tar: Path
    name: str  # below the common folder, as the manifest has it
    index: Path
    with_hash: bool


@dataclass(frozen=True)
class _Indexed:
    """The entry of a shard and what is not in its index, or why it was refused."""

    entry: ShardEntry | None
    faults: list[ContentFault]
    refusal: str = ""


def index_shards(
    base: Path,
    tars: Sequence[Path],
    folder: Path,
    *,
    with_hash: bool,
    workers: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[Manifest, list[ContentFault]]:
    """Index shards and write their manifest; indexes of unchanged shards are kept.

    Unchanged means: of the same size and modification time.

    Args:
        base: the folder that all shards lie in.
        tars: the shards.
        folder: where the manifest and the indexes go.
        with_hash: also compute each shard's SHA-256, which reads all of it.
        workers: processes; 0 works in this one.
        progress: called with the number of shards that are done since the last call.

    Returns:
        The manifest, and what is not in it, shard by shard.

    Raises:
        DataError: a shard is no plain tar, or cut short; the others are indexed all the same.
    """
    make_folder(folder)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    names = [tar.relative_to(base).as_posix() for tar in tars]
    tasks = [
        _Task(tar, name, index_path(folder / name), with_hash)
        for tar, name in zip(tars, names, strict=True)
    ]
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
    manifest = Manifest(folder, entries, tally(faults), at=str(base))
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
        before = task.tar.stat()
        kept = _kept(task, before)
        if kept is not None:
            return kept
        index, faults = build_index(task.tar)
        digest = sha256_of(task.tar) if task.with_hash else None
        after = task.tar.stat()
    except OSError as error:
        return _Indexed(None, [], f"{task.tar}: cannot be read ({error.strerror}); mend its rights")
    except DataError as error:
        return _Indexed(None, [], str(error))
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        return _Indexed(None, [], f"{task.tar}: is being written; run again when it is complete")
    entry = ShardEntry(task.name, after.st_size, len(index), digest, after.st_mtime_ns)
    make_folder(task.index.parent)
    save_index(index, task.index, entry, faults=to_note(faults))
    return _Indexed(entry, faults)


def _kept(task: _Task, found: os.stat_result) -> _Indexed | None:
    """What an earlier run found in a shard that has not changed since, else None."""
    if not task.index.is_file():
        return None
    try:
        _, entry, notes = read_index(task.index)
    except DataError:
        return None
    same = (entry.name, entry.bytes, entry.mtime_ns) == (
        task.name,
        found.st_size,
        found.st_mtime_ns,
    )
    if not same or "faults" not in notes or (task.with_hash and entry.sha256 is None):
        return None
    return _Indexed(entry, from_note(notes["faults"]))
