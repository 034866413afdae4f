"""Checkpoints are what they say: real engines on two ranks, real files, disks that really fail."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.checkpoint_files import fault_in
from pipeline.export_files import ExportTensors
from tests.dist.launch import launch, succeeded

pytestmark = pytest.mark.dist
STAGES = (3, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both ranks saw, in one launch."""
    made = tmp_path_factory.mktemp("store")
    succeeded(launch("tests/dist/store_program.py", [str(made)], ranks=2))
    return made


def seen(folder: Path, name: object) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("stage", STAGES)
def test_training_goes_on_while_a_checkpoint_is_on_its_way(folder: Path, stage: int) -> None:
    for rank in seen(folder, stage):
        assert rank["steps meanwhile"] > 1
        assert not rank["marked too early"]
        assert rank["failure"] is None and rank["fault"] is None
        assert rank["is of its step"]


@pytest.mark.parametrize(("stage", "each"), [(3, 12), (1, 16)])
def test_its_size_is_that_of_what_trains_alone(folder: Path, stage: int, each: int) -> None:
    rank = seen(folder, stage)[0]
    assert rank["all"] > 1000 * rank["trained"]
    own = each * rank["trained"]
    assert own < rank["bytes on disk"] < own + 1_000_000
    assert 2 * rank["all"] > 8_000_000  # which would be seen, in any precision
    assert rank["expected bytes"] == pytest.approx(rank["bytes on disk"], abs=60_000)
    mark = (folder / f"checkpoints-{stage}" / "step-000004" / "complete.json").stat().st_size
    assert abs(rank["bytes"] + mark - rank["bytes on disk"]) < 100


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_of_one_rank_is_agreed_on_and_leaves_the_older_one(
    folder: Path, stage: int
) -> None:
    one, other = seen(folder, stage)
    for when in ("full staging", "full target"):
        assert one[when] == other[when]
        for part in ("File too large", "rank 1 on", "MB free at", "a checkpoint takes about"):
            assert part in one[when]
    assert one["after failures"] == ["step-000001"]
    assert one["staging left"] == []
    assert one["room again"] == [None, None]


@pytest.mark.parametrize("stage", STAGES)
def test_a_flipped_bit_in_one_ranks_file_makes_all_ranks_take_the_older(
    folder: Path, stage: int
) -> None:
    for rank in seen(folder, stage):
        assert rank["chosen"] == "step-000004"
    assert seen(folder, stage)[0]["after the choice"] == ["damaged-step-000005", "step-000004"]


def test_a_file_save_asks_for_one_checkpoint_and_training_goes_on(folder: Path) -> None:
    for rank in seen(folder, "run"):
        assert rank["asked for"] == [["step-000001", "step-000003"], False]


def test_a_run_that_passes_a_damaged_one_over_ends_where_it_would_have(folder: Path) -> None:
    rank = seen(folder, "run")[0]
    assert len(rank["passed over"]) == 1 and "step-000003" in rank["passed over"][0]
    assert "SHA-256" in rank["passed over"][0]
    assert len(rank["goes on"]) == 1 and "step-000001" in rank["goes on"][0]
    assert rank["at the end"] == ["step-000002", "step-000003"]  # every 2nd, the last
    whole, stopped = (
        ExportTensors(folder / "runs" / name / "st_align" / "export")
        for name in ("whole", "stopped")
    )
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    left = folder / "runs" / "stopped" / "st_align" / "checkpoints"
    assert all(fault_in(each) is None for each in left.iterdir())


def test_a_run_that_cannot_write_says_so_and_ends_on_all_ranks(folder: Path) -> None:
    one, other = seen(folder, "run")
    assert one["gave up"] == other["gave up"]
    assert "checkpoints.attempts=2" in one["gave up"] and "Not a directory" in one["gave up"]
    assert len(one["warned"]) == 2 and "of step 1 could not be written (1 of 2" in one["warned"][0]


def test_a_stop_without_a_checkpoint_says_so(folder: Path) -> None:
    summary = json.loads((folder / "runs" / "unsaved" / "st_align" / "summary.json").read_text())
    assert summary["state"] == "stopped"
    assert "the checkpoint of step 2 could not be written" in summary["reason"]
    assert seen(folder, "run")[0]["tried"] == 2


def test_tensorboard_tells_what_checkpoints_cost(folder: Path) -> None:
    board = EventAccumulator(str(folder / "runs" / "whole" / "st_align" / "tensorboard"))
    board.Reload()
    for name in ("stalled_seconds", "complete_seconds", "bytes"):
        values = {each.step: each.value for each in board.Scalars(f"st_align/checkpoint/{name}")}
        assert sorted(values) == [1, 2, 3]
        assert all(value > 0 for value in values.values())
