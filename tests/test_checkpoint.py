"""Which checkpoint a run goes on from."""

import logging
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import choose_checkpoint, newest_checkpoint
from pipeline.checkpoint_files import MARK, checkpoints
from pipeline.dist import World
from pipeline.errors import CheckpointError
from tests.stored import FILES, put_checkpoint
from tests.test_checkpoint_files import flip_one_bit, truncate

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def test_the_newest_good_one_of_the_segment_is_chosen(tmp_path: Path) -> None:
    for step in (5, 10, 20):
        put_checkpoint(tmp_path, step)
    (tmp_path / ".writing-step-000030").mkdir()
    (tmp_path / "step-of-a-user").mkdir()
    for choose in (newest_checkpoint, lambda *a: choose_checkpoint(*a, ALONE)):
        assert choose(tmp_path, 0, 19) == tmp_path / "step-000010"
        assert choose(tmp_path, 20, 30) is None


def test_damaged_ones_are_passed_over_by_name_and_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3, 4):
        put_checkpoint(tmp_path, step)
    (tmp_path / "step-000004" / MARK).unlink()
    truncate(tmp_path / "step-000003" / FILES[1][0])
    flip_one_bit(tmp_path / "step-000002" / FILES[0][1])
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        chosen = choose_checkpoint(tmp_path, 0, 9, ALONE)
    assert chosen == tmp_path / "step-000001"
    lines = [each.getMessage() for each in caplog.records]
    assert len(lines) == 3
    for line, step, reason in zip(
        lines,
        (4, 3, 2),
        (MARK, f"{FILES[1][0]} has", f"{FILES[0][1]} has the SHA-256"),
        strict=True,
    ):
        assert f"step-{step:06d} is passed over: {reason}" in line
    assert checkpoints(tmp_path) == [chosen]
    assert len(list(tmp_path.glob("damaged-step-*"))) == 3  # nothing is lost


def test_when_none_is_good_the_run_does_not_start_from_scratch(tmp_path: Path) -> None:
    for step in (1, 2):
        truncate(put_checkpoint(tmp_path, step) / FILES[0][0])
    for _ in range(2):  # nor at the second try
        with pytest.raises(CheckpointError, match="none of the 2 checkpoints in"):
            choose_checkpoint(tmp_path, 0, 9, ALONE)


def test_a_run_of_fewer_steps_does_not_start_from_scratch_in_silence(tmp_path: Path) -> None:
    put_checkpoint(tmp_path, 9)
    with pytest.raises(CheckpointError, match=r"step-000009 lies beyond step 5") as caught:
        choose_checkpoint(tmp_path, 0, 5, ALONE)
    assert "\n" not in str(caught.value)
    assert choose_checkpoint(tmp_path, 0, 9, ALONE) == tmp_path / "step-000009"
    earlier = put_checkpoint(tmp_path, 3)
    assert choose_checkpoint(tmp_path, 0, 5, ALONE) == earlier
