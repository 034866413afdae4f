"""Checkpoints on disk: layout, completeness, retention.

A checkpoint is a folder that appears by rename when it is complete; whatever else lies around is
ignored. Assumes a file system shared by all ranks.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.dist import wait_for_all
from pipeline.durable import sync, write_json
from pipeline.engine import Engine
from pipeline.errors import CheckpointError
from pipeline.progress import Progress

_STATE = "state.json"


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
