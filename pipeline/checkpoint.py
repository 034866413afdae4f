"""Checkpoints of a run: written, chosen, loaded.

One counts when its files are what its mark of completeness says (`checkpoint_files.py`); how it
gets to the run's folder while training goes on is in `saving.py`. Assumes a file system shared by
all ranks.
"""

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline.checkpoint_files import STATE, checkpoints, fault_in, set_aside, step_of
from pipeline.dist import World, from_main, gather_json, wait_for_all
from pipeline.durable import write_json
from pipeline.engine import Engine
from pipeline.errors import CheckpointError
from pipeline.progress import Progress

log = logging.getLogger("pipeline")


def write_checkpoint(folder: Path, engine: Engine, progress: Progress, fingerprint: str) -> None:
    """Writes this rank's files of a checkpoint into `folder`, its own; every rank calls it.

    Raises OSError on the ranks whose files could not be written, after all have come to the end.
    """
    engine.save(folder)
    random = save(_random_state())
    (folder / f"random-{engine.world.rank}.safetensors").write_bytes(random)
    if engine.world.is_main:
        state = {
            "progress": asdict(progress),
            "fingerprint": fingerprint,
            "ranks": engine.world.size,
            "layout": engine.layout,
        }
        write_json(folder / STATE, state)


def newest_checkpoint(folder: Path, first: int, last: int) -> Path | None:
    """The newest with first < step <= last whose files have their sizes; None if there is none.

    For a look at what would be resumed; `choose_checkpoint` reads the files too.
    """
    usable = (each for each in _between(folder, first, last) if not fault_in(each, hashes=False))
    return next(usable, None)


def choose_checkpoint(folder: Path, first: int, last: int, world: World) -> Path | None:
    """The newest good checkpoint with first < step <= last; None if there is none at all.

    Every rank calls it, checks sizes and SHA-256 of its own files, and gets the same answer. Those
    that are not good are named with the reason and, once an older one is found to be good, renamed
    to damaged-step-NNNNNN. Raises CheckpointError when there are some and none of them is good.
    """
    names = from_main([each.name for each in _between(folder, first, last)], world)
    for number, name in enumerate(names):
        share = (world.rank, world.size)
        found = gather_json(fault_in(folder / name, share), world)
        fault = next((each for each in found if each is not None), None)
        if fault is None:
            _set_aside([folder / each for each in names[:number]], world)
            return folder / str(name)
        log.warning("checkpoint    %s is passed over: %s", folder / name, fault)
    if names:
        raise CheckpointError(
            f"none of the {len(names)} checkpoints in {folder} is good (the newest, {names[0]}: "
            f"see the line above); bring back good files, or delete {folder} to start again"
        )
    return None


def holds_other_checkpoints(folder: Path, fingerprint: str, ranks: int | None = None) -> bool:
    """True when `folder` holds checkpoints of another recipe (or, if given, of other ranks)."""
    states = [_read_state(each) for each in checkpoints(folder) if not fault_in(each, hashes=False)]
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


def _between(folder: Path, first: int, last: int) -> list[Path]:
    """The checkpoints with first < step <= last, good or not, the newest first."""
    return [each for each in checkpoints(folder)[::-1] if first < step_of(each) <= last]


def _set_aside(damaged: Sequence[Path], world: World) -> None:
    if world.is_main:
        for each in damaged:
            with contextlib.suppress(OSError):  # a read-only folder: passed over again next time
                set_aside(each)
    wait_for_all(world)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged ({error}); delete that folder, the same command goes on "
            "from the one before"
        ) from error
    return loaded


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
