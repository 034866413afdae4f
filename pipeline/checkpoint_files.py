"""A checkpoint as files: moved in, marked complete with sizes and hashes, checked, removed.

A checkpoint is a folder step-NNNNNN that appeared by rename. `complete.json` in it lists every
other file with its size, its SHA-256 and the rank that wrote it; whatever that list does not bear
out is no checkpoint. Knows nothing of tensors, engines and agreement.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pipeline.data.files import LASTING, Patience
from pipeline.durable import sync, write_json
from pipeline.errors import DataError
from pipeline.retention import Retention

MARK = "complete.json"
STATE = "state.json"
_FORMAT = 2  # 1 had no hashes, and is not read
_BLOCK = 1 << 22


@dataclass(frozen=True)
class StoredFile:
    """One file of a checkpoint, as it was written."""

    bytes: int
    sha256: str
    rank: int  # that wrote it, and checks it


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def path_of(folder: Path, step: int) -> Path:
    """The folder of a complete checkpoint."""
    return folder / f"step-{step:06d}"


def writing_path(folder: Path, step: int) -> Path:
    """The folder in which a checkpoint comes together."""
    return folder / f".writing-step-{step:06d}"


def checkpoints(folder: Path) -> list[Path]:
    """The folders of checkpoints by their step, good or not."""
    found = [each for each in folder.glob("step-*") if each.name[5:].isdigit() and each.is_dir()]
    return sorted(found, key=step_of)


def clear_unfinished(folder: Path) -> None:
    """Removes what a killed run left of a checkpoint that was never marked complete."""
    for each in folder.glob(".writing-step-*"):
        shutil.rmtree(each, ignore_errors=True)


def move_in(source: Path, target: Path, rank: int) -> dict[str, StoredFile]:
    """Moves all files below `source` to the same places below `target`, and makes them durable.

    Returns what was moved, by its path below `target`. Raises OSError.
    """
    moved = {}
    files = sorted(each for each in source.rglob("*") if each.is_file())
    for file in files:
        name = file.relative_to(source)
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        moved[name.as_posix()] = _move(file, place, rank)
    for folder in {(target / name).parent for name in moved} | {target}:
        sync(folder)
    return moved


def complete(writing: Path, target: Path, files: dict[str, StoredFile]) -> None:
    """Marks `writing` complete and gives it its name `target`.

    Raises OSError, also where a file of another rank is not to be seen from here.
    """
    for name, stored in files.items():
        if fault := _size_fault(writing, name, stored):
            raise OSError(f"{fault}: all ranks must write to one file system (runs=)")
    listed = {name: asdict(files[name]) for name in sorted(files)}
    write_json(writing / MARK, {"format": _FORMAT, "files": listed})
    sync(writing / MARK)
    sync(writing)
    if target.exists():
        set_aside(target)
    writing.rename(target)
    sync(target.parent)


def fault_in(path: Path, share: tuple[int, int] = (0, 1), *, hashes: bool = True) -> str | None:
    """What is wrong with a checkpoint: the file, what was expected and what is there; None if good.

    share: (rank, ranks) checks the files that this rank has written, or its share of them where
    there were more ranks then. hashes: without, sizes alone are compared, and of STATE, which is
    small, the hash. A read that fails is tried again before it counts: what is judged damaged is
    set aside, and removed in the end.
    """
    patience = Patience()
    try:
        mark = patience(path / MARK, (path / MARK).read_bytes, lasting=LASTING)
    except FileNotFoundError:
        return f"{MARK} is missing (never completed, or of a version that kept no hashes)"
    except (OSError, DataError) as error:
        return str(error)
    try:
        for name, stored in _files_of(mark).items():
            if stored.rank % share[1] != share[0]:
                continue
            look = partial(_file_fault, path, name, stored, hashed=hashes or name == STATE)
            if fault := patience(path / name, look, lasting=LASTING):
                return fault
    except (OSError, DataError) as error:
        return str(error)
    return None


def set_aside(path: Path) -> None:
    """Renames a damaged checkpoint, so that it neither counts as one nor is lost."""
    aside = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def remove_outdated(folder: Path, newest: int, retention: Retention) -> None:
    """Removes what may go now that the checkpoint of step `newest` is complete.

    Damaged ones that were set aside go with the first that is complete after them.
    """
    metrics = {
        step_of(each): _metric(each, retention.best)
        for each in checkpoints(folder)
        if step_of(each) <= newest and (each / MARK).is_file()
    }
    for step in retention.outdated(metrics):
        shutil.rmtree(path_of(folder, step), ignore_errors=True)
    for aside in folder.glob("damaged-step-*"):
        shutil.rmtree(aside, ignore_errors=True)


def _files_of(content: bytes) -> dict[str, StoredFile]:
    """The files that a mark lists; raises OSError for a mark that cannot be what was written."""
    try:
        mark = json.loads(content)
        if mark["format"] != _FORMAT:
            raise OSError(f"{MARK} is of format {mark['format']}, not {_FORMAT}")
        return {name: StoredFile(**each) for name, each in mark["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"{MARK} is damaged ({error})") from error


def _file_fault(folder: Path, name: str, stored: StoredFile, *, hashed: bool) -> str | None:
    fault = _size_fault(folder, name, stored)
    return _hash_fault(folder, name, stored) if fault is None and hashed else fault


def _size_fault(folder: Path, name: str, stored: StoredFile) -> str | None:
    try:
        found = (folder / name).stat().st_size
    except FileNotFoundError:
        return f"{name} is missing"
    return None if found == stored.bytes else f"{name} has {found} bytes, not {stored.bytes}"


def _hash_fault(folder: Path, name: str, stored: StoredFile) -> str | None:
    with (folder / name).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == stored.sha256:
        return None
    return f"{name} has the SHA-256 {found[:12]}..., not {stored.sha256[:12]}..."


def _move(source: Path, target: Path, rank: int) -> StoredFile:
    """A rename within a file system, else a copy; hashed on the way, durable after it."""
    if source.stat().st_dev == target.parent.stat().st_dev:
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        sync(source)
        source.replace(target)
    else:
        digest = _copy(source, target)
        source.unlink()
    return StoredFile(target.stat().st_size, digest, rank)


def _copy(source: Path, target: Path) -> str:
    """Copies a file durably and returns the SHA-256 of what was read."""
    digest = hashlib.sha256()
    with source.open("rb") as reading, target.open("wb") as writing:
        while block := reading.read(_BLOCK):
            digest.update(block)
            writing.write(block)
        writing.flush()
        os.fsync(writing.fileno())
    return digest.hexdigest()


def _metric(path: Path, name: str | None) -> float | None:
    """A metric that was measured at the checkpoint's own step; None for any other."""
    if name is None:
        return None
    try:
        progress = json.loads((path / STATE).read_bytes())["progress"]
    except (OSError, ValueError, KeyError):
        return None
    if progress["validated_at"] != progress["step"]:
        return None
    value: float | None = progress["validation"].get("end", {}).get(name)
    return value
