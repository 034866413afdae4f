"""Checkpoints on disk: layout, completeness, retention. How one is gone on from: `resume.py`.

A checkpoint is a folder that appears by rename when it is complete; whatever else lies around is
ignored. Assumes a file system shared by all ranks.
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.checkpoint_state import STATE, state_of
from pipeline.dist import wait_for_all
from pipeline.durable import sync, write_json
from pipeline.engine import Engine
from pipeline.identity import Identity
from pipeline.progress import Progress


def save_checkpoint(
    folder: Path, engine: Engine, progress: Progress, identity: Identity, *, keep: int
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
        write_json(writing / STATE, state_of(engine, progress, identity))
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


def _complete(folder: Path) -> list[Path]:
    """Checkpoints in order of their step; only complete ones have their final name."""
    found = [each for each in folder.glob("step-*") if (each / STATE).is_file()]
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
