"""Checkpoints and exports on disk: layout, completeness, retention, hand-over.

A checkpoint is a folder that appears by rename when it is complete; whatever else lies around is
ignored. An export is one safetensors file with everything that differs from the base weights,
beside a JSON that says which recipe made it. Assumes a file system shared by all ranks.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.config import Config
from pipeline.dist import wait_for_all
from pipeline.engine import Engine
from pipeline.errors import CheckpointError
from pipeline.exports import DETAILS, RECIPE, WEIGHTS, is_export
from pipeline.recipe import save_recipe

IMPORTED = "imported"  # the `phase` of an export that no phase of ours has made
_STATE = "state.json"


@dataclass
class Progress:
    """How far a phase is; what a checkpoint and an export carry beside tensors."""

    step: int = 0  # steps of the data plan done
    updates: int = 0  # optimizer updates of this segment; skipped steps do not count
    records_seen: int = 0
    records_by_set: dict[str, int] = field(default_factory=dict)  # of a mixture
    records_skipped: dict[str, int] = field(default_factory=dict)
    texts_cut: int = 0
    steps_skipped: int = 0
    io_retries: int = 0  # reads that were tried again, by all ranks
    worker_restarts: int = 0  # loading processes that died, and were started again
    seconds: float = 0.0
    train_loss: float | None = None
    validation: dict[str, dict[str, float]] = field(default_factory=dict)  # start, end


def save_checkpoint(
    folder: Path, engine: Engine, progress: Progress, fingerprint: str, *, keep: int
) -> Path:
    """Writes `folder`/step-NNNNNN, complete or not at all; older ones beyond `keep` go after it."""
    world = engine.world
    target = folder / f"step-{progress.step:06d}"
    writing = folder / f".writing-step-{progress.step:06d}"
    if world.is_main:
        for torn in folder.glob(".writing-step-*"):
            shutil.rmtree(torn, ignore_errors=True)
        writing.mkdir(parents=True)
    wait_for_all(world)
    engine.save(writing)
    save_file(_random_state(), writing / f"random-{world.rank}.safetensors")
    wait_for_all(world)
    if world.is_main:
        state = {
            "progress": asdict(progress),
            "fingerprint": fingerprint,
            "ranks": world.size,
            "layout": engine.layout,
        }
        write_json(writing / _STATE, state)
        for path in sorted(writing.rglob("*")):
            sync(path)
        if target.exists():
            shutil.rmtree(target)
        writing.rename(target)
        sync(folder)
        for old in _complete(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    wait_for_all(world)
    return target


def newest_checkpoint(folder: Path, first: int, last: int) -> Path | None:
    """The newest complete checkpoint with first < step <= last; None if there is none."""
    usable = [each for each in _complete(folder) if first < _step(each) <= last]
    return usable[-1] if usable else None


def holds_other_checkpoints(folder: Path, fingerprint: str, ranks: int | None = None) -> bool:
    """True when `folder` holds checkpoints of another recipe (or, if given, of other ranks)."""
    states = [_read_state(each) for each in _complete(folder)]
    return any(
        state["fingerprint"] != fingerprint or ranks not in (None, state["ranks"])
        for state in states
    )


def load_checkpoint(path: Path, engine: Engine, fingerprint: str) -> Progress:
    """Puts engine and random states back where `path` was written.

    Raises CheckpointError when the recipe, the data or the number of ranks is another.
    """
    progress = check_checkpoint(path, fingerprint, engine.world.size, engine.layout)
    engine.load(path)
    _restore_random_state(load_file(path / f"random-{engine.world.rank}.safetensors"))
    return progress


def check_checkpoint(path: Path, fingerprint: str, ranks: int, layout: str) -> Progress:
    """How far the run was that wrote `path`, if this one can go on from there.

    Raises CheckpointError when the recipe, the data, the number of ranks or the layout (an
    engine's `layout`) is another.
    """
    state = _read_state(path)
    if state["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{path} was written by another recipe or on other data; give another name=, or "
            "overwrite=true to start the phase again"
        )
    if state["ranks"] != ranks:
        raise CheckpointError(
            f"{path} was written by {state['ranks']} ranks, now there are {ranks}; "
            f"start with {state['ranks']}, or overwrite=true to start the phase again"
        )
    if state["layout"] != layout:
        raise CheckpointError(
            f"{path} was written under {state['layout']}, this run uses {layout}; go back "
            "to that ds_config and precision, or overwrite=true to start the phase again"
        )
    return Progress(**state["progress"])


def save_export(
    folder: Path,
    tensors: Mapping[str, Tensor],
    progress: Progress,
    details: Mapping[str, Any],
    config: Config,
) -> None:
    """Writes an export folder by rename; call on one rank only.

    tensors: by exported name. details: the recipe's fingerprint and what the next reader wants.
    config: the recipe that made it, kept beside the tensors.
    """
    writing = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    save_file({name: each.contiguous() for name, each in tensors.items()}, writing / WEIGHTS)
    save_recipe(config, writing / RECIPE)
    write_json(writing / DETAILS, {**details, "progress": asdict(progress)})
    for path in writing.iterdir():
        sync(path)
    if folder.exists():
        shutil.rmtree(folder)
    writing.rename(folder)
    sync(folder.parent)


def read_export(folder: Path) -> dict[str, Any] | None:
    """The export's JSON; None when there is no complete export at `folder`."""
    path = folder / DETAILS
    if not is_export(folder):
        return None
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); delete the folder, the phase makes it again"
        ) from error
    return loaded


def check_has_st(folder: Path) -> None:
    """Raises CheckpointError for an export that cannot caption: it holds no trained ST."""
    if not any(name.startswith("st.") for name in ExportTensors(folder)):
        raise CheckpointError(
            f"{folder} holds no ST network, so it cannot caption; name an export of st_align or "
            "llm_tune"
        )


class ExportTensors(Mapping[str, Tensor]):
    """The tensors of an export by exported name, each read from the file when it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError when the file is missing or damaged."""
        self._path = folder / WEIGHTS
        try:
            opened: Any = safe_open(self._path, framework="pt")
            self._file, self._names = opened, tuple(opened.keys())
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"export {self._path} cannot be read ({error}); run the phase that makes it again"
            ) from error

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._file.get_slice(name).get_shape())


def fingerprint_of(*values: Any) -> str:
    """A short hash of JSON-able values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of names and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def content_hash(path: Path, cache: Path, *, remember: bool = True) -> str:
    """A short hash of a file's bytes, or of all files of a folder; the name itself if neither.

    Weights of many GB are read once: `cache` (JSON) remembers hashes by path, size and time;
    remember: whether new ones are written to it.
    """
    if not path.exists():
        return str(path)
    known: dict[str, str] = {}
    if cache.is_file():
        known = json.loads(cache.read_text(encoding="utf-8"))
    files = [path] if path.is_file() else sorted(each for each in path.iterdir() if each.is_file())
    hashes = []
    for file in files:
        status = file.stat()
        key = f"{file.resolve()}:{status.st_size}:{status.st_mtime_ns}"
        if key not in known:
            with file.open("rb") as opened:
                known[key] = hashlib.file_digest(opened, "sha256").hexdigest()
        hashes.append([file.name if path.is_dir() else "", known[key]])
    if remember:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_json(cache, known)
    return fingerprint_of(hashes)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON by atomic rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def sync(path: Path) -> None:
    """Makes a file or a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _complete(folder: Path) -> list[Path]:
    """Checkpoints in order of their step; only complete ones have their final name."""
    found = [each for each in folder.glob("step-*") if (each / _STATE).is_file()]
    return sorted(found, key=_step)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = json.loads((path / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged ({error}); delete that folder, the same command goes on "
            "from the one before"
        ) from error
    return loaded


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
