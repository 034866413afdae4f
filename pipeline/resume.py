"""Going on from a checkpoint: whether this run may, and everything put back where it was.

A checkpoint's state.json says what it depends on (`identity.py`), how many ranks wrote it, and what
trains in it. Another number of ranks goes on with the same data (`repartition.py`); another recipe
only where the user allows it.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.checkpoint_state import identity_in, read_state
from pipeline.engine import Engine
from pipeline.errors import CheckpointError
from pipeline.identity import Identity, differences, told
from pipeline.progress import Progress
from pipeline.repartition import for_ranks_of


def load_checkpoint(
    path: Path, engine: Engine, identity: Identity, *, with_changes: bool = False
) -> Progress:
    """Puts engine and random states back where `path` was written. Every rank calls it.

    On another number of ranks, what a rank drops from then on (dropout) is drawn anew: from the
    recipe's seed, the rank, the step and the number of ranks. with_changes: see `check_checkpoint`;
    what has changed is noted in the progress. Raises CheckpointError as that does, and for what
    does not fit the engine.
    """
    state = read_state(path)
    progress = check_checkpoint(path, identity, engine.layout, with_changes=with_changes)
    if state["trains"] != engine.trains:
        raise CheckpointError(
            f"{path} does not fit: other parameters train in it, or in other groups "
            f"({state['trains']['parameters']:,}) than in this run "
            f"({engine.trains['parameters']:,}); go back to its recipe, or overwrite=true to start "
            "the phase again"
        )
    with for_ranks_of(engine, path, state["ranks"]) as readable:
        engine.load(readable)
    world = engine.world
    if state["ranks"] == world.size:
        _restore_random_state(load_file(path / f"random-{world.rank}.safetensors"))
    else:
        words = [torch.initial_seed(), progress.step, world.size]  # the seed is the rank's own
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))
    return progress


def check_checkpoint(
    path: Path, identity: Identity, layout: str, *, with_changes: bool = False
) -> Progress:
    """How far the run was that wrote `path`, if this one can go on from there.

    layout: an engine's `layout`. with_changes: go on from another recipe, other data or other
    weights too. Raises CheckpointError, with what differs, where that is not allowed.
    """
    state = read_state(path)
    different = differences(identity_in(state), identity)
    progress = Progress(**state["progress"])
    if different and not with_changes:
        raise CheckpointError(
            f"{path} was written with other values: {told(different)}; resume_with_changes=true "
            "goes on from it with those of now, overwrite=true starts the phase again, another "
            "name= keeps both"
        )
    if state["layout"] != layout:
        raise CheckpointError(
            f"{path} was written under {state['layout']}, this run uses {layout}; go back "
            "to that ds_config and precision, or overwrite=true to start the phase again"
        )
    progress.changes += [f"step {progress.step}: {each}" for each in different]
    return progress


def _restore_random_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
