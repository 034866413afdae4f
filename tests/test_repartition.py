"""A checkpoint is rewritten for other ranks as a whole and without running what lies in it."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.dist import World
from pipeline.engine import TAG
from pipeline.errors import CheckpointError
from pipeline.repartition import for_ranks_of
from pipeline.slices import Flat

FULL = torch.arange(5.0)  # one parameter, cut into 3 + 2 and a padding


def engine() -> Any:
    world = World(0, 1, 0, 1, torch.device("cpu"))
    return SimpleNamespace(stage=3, world=world, flat_groups=lambda: [Flat({"w": 5}, 5)])


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """What two ranks write under ZeRO-3, in small."""
    folder = tmp_path / "step-000002" / TAG
    folder.mkdir(parents=True)
    for rank, own in enumerate(torch.cat([FULL, torch.zeros(1)]).chunk(2)):
        state = {0: {"step": torch.tensor(2.0), "exp_avg": own + 10, "moving_average": own + 20}}
        inner = {"state": state, "param_groups": [{"weight_decay": 0.1, "params": [0]}]}
        optimizer = {"optimizer_state_dict": inner, "fp32_flat_groups": [own]}
        name = f"zero_pp_rank_{rank}_mp_rank_00_{{}}.pt"
        torch.save({"optimizer_state_dict": optimizer}, folder / name.format("optim_states"))
        shapes = [OrderedDict(w=torch.Size([5]))]
        model = {"param_shapes": shapes, "dp_world_size": 2, "global_steps": 2}
        torch.save(model, folder / name.format("model_states"))
    return folder.parent


def test_one_rank_gets_all_of_two(written: Path) -> None:
    with for_ranks_of(engine(), written, 2) as readable:
        assert readable.parent == written.parent and readable != written
        name = "zero_pp_rank_0_mp_rank_00_{}.pt"
        made = torch.load(readable / TAG / name.format("optim_states"), weights_only=True)
        model = torch.load(readable / TAG / name.format("model_states"), weights_only=True)
    optimizer = made["optimizer_state_dict"]
    assert torch.equal(optimizer["fp32_flat_groups"][0], FULL)
    state = optimizer["optimizer_state_dict"]["state"][0]
    assert torch.equal(state["exp_avg"], FULL + 10)
    assert torch.equal(state["moving_average"], FULL + 20) and state["step"] == 2
    groups = optimizer["optimizer_state_dict"]["param_groups"]
    assert groups == [{"weight_decay": 0.1, "params": [0]}]
    assert model["dp_world_size"] == 1 and model["global_steps"] == 2
    assert list(written.parent.iterdir()) == [written]  # nothing of it stays


def test_the_same_ranks_read_the_checkpoint_itself(written: Path) -> None:
    with for_ranks_of(engine(), written, 1) as readable:
        assert readable == written


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def remove(path: Path) -> None:
    path.unlink()


class Attack:
    """Unpickled, it writes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def poison(path: Path) -> None:
    torch.save({"optimizer_state_dict": Attack(path.parents[2] / "trace")}, path)


@pytest.mark.parametrize("damage", [cut_short, remove, poison])
@pytest.mark.parametrize("kind", ["optim_states", "model_states"])
def test_damaged_files_are_refused_and_run_nothing(
    written: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    damage(written / TAG / f"zero_pp_rank_0_mp_rank_00_{kind}.pt")
    with (
        pytest.raises(CheckpointError, match="cannot be rewritten for 1 rank"),
        for_ranks_of(engine(), written, 2),
    ):
        raise AssertionError("nothing to load")
    assert list(written.parent.iterdir()) == [written]  # no trace, nothing half-written


def test_a_checkpoint_of_other_parameters_is_refused(written: Path) -> None:
    other = engine()
    other.flat_groups = lambda: [Flat({"v": 5}, 5)]
    with pytest.raises(CheckpointError, match="other parameters"), for_ranks_of(other, written, 2):
        raise AssertionError("nothing to load")
