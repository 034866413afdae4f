"""Saving on one rank: what a killed run left, a read-only folder, room again.

The engine here writes bytes instead of tensors; DeepSpeed's own, on several ranks, is in
`dist/test_store.py`.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.attempts import Attempt
from pipeline.checkpoint_files import checkpoints, fault_in, writing_path
from pipeline.config import CheckpointsConfig
from pipeline.dist import World
from pipeline.errors import OwnerError
from pipeline.identity import Identity
from pipeline.ownership import Claim, Ownership
from pipeline.progress import Progress
from pipeline.retention import Retention
from pipeline.saving import Saved, Saver

NOBODY = 65534
IDENTITY = Identity({})


class Engine:
    """What a saver wants of an engine."""

    world = World(0, 1, 0, 1, torch.device("cpu"))
    layout, trains, checkpoint_bytes = "none", None, 3e6

    def save(self, folder: Path) -> None:
        (folder / "engine").mkdir()
        (folder / "engine" / "states.pt").write_bytes(os.urandom(1000))


def saver(folder: Path, owner: Ownership | None = None) -> Saver:
    engine: Any = Engine()
    return Saver(
        folder,
        engine,
        IDENTITY,
        settings=CheckpointsConfig(),
        retention=Retention(last=2, every=4),
        owner=owner or Ownership(Engine.world),
    )


def write(saver: Saver, step: int) -> Saved:
    ended = saver.begin(Progress(step)) or saver.finish()
    assert ended is not None
    return ended


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be made in `folder`; root gives its rights up meanwhile, which bind it too."""
    root = os.geteuid() == 0
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    try:
        if root:
            os.seteuid(NOBODY)
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(mode)


def test_the_last_and_every_kth_are_there_complete_and_nothing_else(tmp_path: Path) -> None:
    one = saver(tmp_path)
    for step in range(1, 8):
        saved = write(one, step)
        assert saved.failure is None and saved.bytes > 1000
    assert [each.name for each in sorted(tmp_path.iterdir())] == [
        "step-000004",
        "step-000006",
        "step-000007",
    ]
    assert all(fault_in(each) is None for each in checkpoints(tmp_path))


def test_nothing_has_a_checkpoints_name_before_it_is_complete(tmp_path: Path) -> None:
    one = saver(tmp_path)
    write(one, 1)
    assert one.begin(Progress(2)) is None
    while one.busy:  # the thread moves files
        assert [each.name for each in checkpoints(tmp_path)] == ["step-000001"]
    assert one.advance() is None  # all are there; the thread marks it
    ended = one.finish()
    assert ended is not None and ended.path.is_dir() and fault_in(ended.path) is None


def test_what_a_killed_run_left_is_cleared_and_the_older_one_stays(tmp_path: Path) -> None:
    write(saver(tmp_path), 1)
    killed = saver(tmp_path)
    killed.begin(Progress(2))
    while killed.busy:
        pass
    assert writing_path(tmp_path, 2).is_dir()
    saver(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["step-000001"]


def test_a_read_only_folder_leaves_the_older_one_and_is_tried_again() -> None:
    # Not in pytest's own folder, which others than its user may not enter at all.
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        one = saver(folder := Path(made) / "checkpoints")
        assert write(one, 1).failure is None
        with read_only(folder):
            failure = write(one, 2).failure
        assert failure is not None
        for said in ("Permission denied", "rank 0 on", "MB free at", "takes about 3.0 MB"):
            assert said in failure
        assert [each.name for each in folder.iterdir()] == ["step-000001"]
        assert write(one, 3).failure is None


def test_a_bug_in_the_thread_is_not_taken_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> Any:
        raise KeyError("a bug")

    monkeypatch.setattr("pipeline.saving.move_in", fails)
    one = saver(tmp_path)
    with pytest.raises(KeyError, match="a bug"):
        write(one, 1)


def test_a_ghost_completes_no_checkpoint_and_clears_none(tmp_path: Path) -> None:
    job = Attempt.of({"SLURM_JOB_ID": "1"})
    claim = Claim(tmp_path, job)
    owner = Ownership(Engine.world, claim, claim.take())
    ghost = saver(tmp_path / "checkpoints", owner)
    write(ghost, 1)
    ghost.begin(Progress(2))
    Claim(tmp_path, replace(job, restart=1)).take()
    with pytest.raises(OwnerError, match="taken over by job 1, restart 1"):
        ghost.finish()
    with pytest.raises(OwnerError):
        saver(tmp_path / "checkpoints", owner)  # it would clear what the other one writes
    assert [each.name for each in checkpoints(tmp_path / "checkpoints")] == ["step-000001"]
