"""Which checkpoints count, and which belong to another recipe."""

import json
from pathlib import Path

import pytest

from pipeline import checkpoint as ckpt
from pipeline.errors import CheckpointError


def test_only_complete_checkpoints_of_the_segment_count(tmp_path: Path) -> None:
    for step in (5, 10, 20):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "state.json").write_text(
            json.dumps({"fingerprint": "f", "ranks": 1})
        )
    (tmp_path / "step-000015").mkdir()
    (tmp_path / ".writing-step-000030").mkdir()
    newest = ckpt.newest_checkpoint(tmp_path, 0, 19)
    assert newest is not None and newest.name == "step-000010"
    assert ckpt.newest_checkpoint(tmp_path, 20, 30) is None
    assert ckpt.holds_other_checkpoints(tmp_path, "other")
    assert not ckpt.holds_other_checkpoints(tmp_path, "f")
    assert ckpt.holds_other_checkpoints(tmp_path, "f", ranks=2)
    (tmp_path / "step-000020" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="step-000020 is damaged"):
        ckpt.holds_other_checkpoints(tmp_path, "f")
