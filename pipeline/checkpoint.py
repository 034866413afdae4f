"""Checkpoints of a run: written and chosen. How one is gone on from is in `resume.py`.

One counts when its files are what its mark of completeness says (`checkpoint_files.py`); how it
gets to the run's folder while training goes on is in `saving.py`. Assumes a file system shared by
all ranks.
"""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from pipeline.checkpoint_files import STATE, checkpoints, fault_in, set_aside, step_of
from pipeline.checkpoint_state import state_of
from pipeline.dist import World, from_main, gather_json, on_main, wait_for_all
from pipeline.durable import write_json
from pipeline.engine import Engine
from pipeline.errors import CheckpointError
from pipeline.identity import Identity
from pipeline.progress import Progress

log = logging.getLogger("pipeline")


def write_checkpoint(folder: Path, engine: Engine, progress: Progress, identity: Identity) -> None:
    """Writes this rank's files of a checkpoint into `folder`, its own; every rank calls it.

    Raises OSError on the ranks whose files could not be written, after all have come to the end.
    """
    engine.save(folder)
    random = save(_random_state())
    (folder / f"random-{engine.world.rank}.safetensors").write_bytes(random)
    if engine.world.is_main:
        write_json(folder / STATE, state_of(engine, progress, identity))


def newest_checkpoint(folder: Path, first: int, last: int) -> Path | None:
    """The newest with first < step <= last whose files have their sizes, and whose state.json is
    what was written; None if there is none.

    For a look at what would be resumed; `choose_checkpoint` reads all files.
    """
    usable = (each for each in _between(folder, first, last) if not fault_in(each, hashes=False))
    return next(usable, None)


def choose_checkpoint(folder: Path, first: int, last: int, world: World) -> Path | None:
    """The newest good checkpoint with first < step <= last; None if there is none at all.

    Every rank calls it, checks sizes and SHA-256 of its own files, and gets the same answer. Those
    that are not good are named with the reason and, once an older one is found to be good, renamed
    to damaged-step-NNNNNN. Raises CheckpointError when there are some and none of them is good,
    and when all lie beyond `last`, which a start at `first` would overtake.
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
    on_main(lambda: refuse_beyond(folder, last), world)
    return None


def refuse_beyond(folder: Path, last: int) -> None:
    """Raises CheckpointError where the newest checkpoint lies beyond step `last`."""
    for newest in checkpoints(folder)[-1:]:
        if step_of(newest) > last:
            raise CheckpointError(
                f"{newest} lies beyond step {last}, the last to be trained now, and there is none "
                f"before it; train for more steps, or delete {folder} to start again"
            )


def _between(folder: Path, first: int, last: int) -> list[Path]:
    """The checkpoints with first < step <= last, good or not, the newest first."""
    return [each for each in checkpoints(folder)[::-1] if first < step_of(each) <= last]


def _set_aside(damaged: Sequence[Path], world: World) -> None:
    if world.is_main:
        for each in damaged:
            with contextlib.suppress(OSError):  # a read-only folder: passed over again next time
                set_aside(each)
    wait_for_all(world)


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
