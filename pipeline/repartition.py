"""A checkpoint of N ranks, rewritten as the one that M ranks would have written.

Each of the M ranks reads its slice out of the N files (mapped into memory, so that it reads no more
than that) and writes it as a file that DeepSpeed takes for its own: with every group's settings,
any state that the optimizer keeps (an average over steps too), and not a bit changed. DeepSpeed's
universal checkpoints reach less by a longer way: docs/design.md says what they lose.

Knows DeepSpeed's files; `slices.py` knows what lies where in them. Assumes a file system shared by
all ranks, and plain data parallelism.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from pipeline.dist import gather_json, wait_for_all
from pipeline.engine import SAFE, TAG, Engine
from pipeline.errors import CheckpointError
from pipeline.slices import Flat, Slices, cut_again

log = logging.getLogger("pipeline")

_SAY_SECONDS = 10.0
_WHOLE = "optimizer_state_dict"  # all of a rank's file but the version
# What describes the slices of before; DeepSpeed reads none of it when it loads.
_STALE = ("param_slice_mappings", "group_paddings", "partition_count")


@contextlib.contextmanager
def for_ranks_of(engine: Engine, path: Path, written_by: int) -> Iterator[Path]:
    """A folder that `engine.load` takes on its own number of ranks; gone afterwards.

    Every rank calls it. path: a checkpoint that `written_by` ranks wrote under the engine's ZeRO
    stage and precision. Raises CheckpointError, on every rank, where it cannot be read, or there is
    no room for another copy of it beside it.
    """
    world = engine.world
    if written_by == world.size or engine.stage == 0:  # without ZeRO every rank holds all
        yield path
        return
    target = path.with_name(f".writing-{path.name}-for-{world.size}-ranks")
    if world.is_main:
        log.info(
            "%s is rewritten: %d rank(s) have made it, now there are %d",
            path,
            written_by,
            world.size,
        )
        shutil.rmtree(target, ignore_errors=True)
    wait_for_all(world)
    began = time.perf_counter()
    faults = gather_json(_rewrite(engine, path / TAG, target / TAG, written_by), world)
    fault = next((each for each in faults if each is not None), None)
    try:
        if fault is not None:
            raise CheckpointError(
                f"{path} cannot be rewritten for {world.size} rank(s): {fault}; it takes good "
                f"files and room for a second copy beside it, or go on with {written_by} rank(s)"
            )
        log.info("rewritten in %.1f s", time.perf_counter() - began)
        yield target
        wait_for_all(world)
    finally:
        if world.is_main:
            shutil.rmtree(target, ignore_errors=True)


def _rewrite(engine: Engine, source: Path, target: Path, written_by: int) -> str | None:
    """Writes this rank's files; says what went wrong, where something did."""
    world = engine.world
    into = Slices(engine.flat_groups(), world.size, by_parameter=engine.stage == 3)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with torch.serialization.safe_globals(list(SAFE)):
            saved = _Saved(source, written_by, by_parameter=into.by_parameter)
        made = saved.optimizer_of(world.rank, into)
        torch.save(made, target / saved.optimizer_file.replace("rank_0", f"rank_{world.rank}", 1))
        if into.by_parameter or world.is_main:
            model = {**saved.model, "dp_world_size": world.size}
            torch.save(
                model, target / saved.model_file.replace("pp_rank_0", f"pp_rank_{world.rank}")
            )
    except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    except CheckpointError as error:
        return str(error)
    return None


class _Saved:
    """What N ranks have written, as slices to read from."""

    def __init__(self, folder: Path, ranks: int, *, by_parameter: bool) -> None:
        """folder: DeepSpeed's own. Raises OSError, RuntimeError and the like for torn files."""
        pattern = "*zero_pp_rank_0_mp_rank_00_optim_states.pt"  # bf16_ before it in that precision
        name = next((each.name for each in folder.glob(pattern)), pattern)
        self.optimizer_file = name
        self.model_file = f"{'zero_pp_rank_0_' if by_parameter else ''}mp_rank_00_model_states.pt"
        self.model = _load(folder / self.model_file)
        files = [_load(folder / name.replace("rank_0", f"rank_{n}", 1)) for n in range(ranks)]
        self._file = files[0]
        self._ranks = [each[_WHOLE] for each in files]
        self._inner, self._weights = (
            ("optimizer_state_dict", "fp32_flat_groups")
            if by_parameter
            else ("base_optimizer_state", "single_partition_of_fp32_groups")
        )
        if any(map(any, self._ranks[0].get("param_alignment_paddings", []))):
            raise CheckpointError("zero_optimization.parameter_alignment is not supported")
        self._slices = Slices(self._flats(), ranks, by_parameter=by_parameter)

    def optimizer_of(self, rank: int, into: Slices) -> dict[str, Any]:
        """What the optimizer's file of one rank of `into` holds."""
        places = self._slices.places()
        if places.keys() != {name for flat in into.flats for name in flat.sizes}:
            raise CheckpointError("it holds other parameters than this run trains")
        state: dict[int, dict[str, Any]] = {}
        said = time.perf_counter()
        origins = [places[next(iter(flat.sizes))].flat for flat in into.flats]
        for number, (flat, origin) in enumerate(zip(into.flats, origins, strict=True)):
            said = _say(number, len(into.flats), said)
            # A copy of what is no slice (the step): the optimizer counts in place, for each alone.
            state[number] = {
                key: cut_again(self._by_flat(key), places, into, rank, flat)
                if value.dim()
                else value.clone()
                for key, value in self._state(0).get(origin, {}).items()
            }
        lists = [each[self._weights] for each in self._ranks]
        weights = dict(enumerate(zip(*lists, strict=True)))
        flats = [cut_again(weights, places, into, rank, each) for each in into.flats]
        groups = self._ranks[0][self._inner]["param_groups"]
        members = [
            [n for n, origin in enumerate(origins) if origin in group["params"]] for group in groups
        ]
        regrouped = [{**group, "params": own} for group, own in zip(groups, members, strict=True)]
        kept = {key: each for key, each in self._ranks[0].items() if key not in _STALE}
        inner = {"state": state, "param_groups": regrouped}
        return {**self._file, _WHOLE: {**kept, self._inner: inner, self._weights: flats}}

    def _state(self, rank: int) -> dict[int, dict[str, Tensor]]:
        """What the optimizer keeps about each flat tensor."""
        found: dict[int, dict[str, Tensor]] = self._ranks[rank][self._inner]["state"]
        return found

    def _by_flat(self, key: str) -> dict[int, list[Tensor]]:
        """One kind of the optimizer's state: of each flat tensor, of every rank."""
        ranks = range(len(self._ranks))
        return {n: [self._state(rank)[n][key] for rank in ranks] for n in self._state(0)}

    def _flats(self) -> list[Flat]:
        """The lengths are those of rank 0, which has padding last if at all."""
        shapes = self.model["param_shapes"]
        weights = self._ranks[0][self._weights]
        return [
            Flat({name: shape.numel() for name, shape in each.items()}, tensor.numel())
            for each, tensor in zip(shapes, weights, strict=True)
        ]


def _say(done: int, total: int, said: float) -> float:
    """A line of progress every ten seconds; returns when the last one came."""
    if time.perf_counter() - said < _SAY_SECONDS:
        return said
    log.info("rewriting: %d of %d parts of the optimizer's state", done, total)
    return time.perf_counter()


def _load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, "cpu", weights_only=True, mmap=True)
    return loaded
