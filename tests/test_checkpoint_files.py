"""A checkpoint counts only as it was written, to the bit."""

import errno
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint_files import (
    MARK,
    STATE,
    checkpoints,
    complete,
    fault_in,
    move_in,
    path_of,
    remove_outdated,
    writing_path,
)
from pipeline.retention import Retention
from tests.stored import FILES, put_checkpoint

MEMORY = Path("/dev/shm")  # another file system than the tests' own, on every Linux


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [*FILES[0], *FILES[1], "state.json"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, r"has \d+ bytes, not \d+"),
        (flip_one_bit, "has the SHA-256"),
        (Path.unlink, "missing"),
    ],
)
def test_damage_to_any_file_is_seen_and_named(
    tmp_path: Path, name: str, damage: Callable[[Path], None], said: str
) -> None:
    path = put_checkpoint(tmp_path, 3)
    assert fault_in(path) is None
    damage(path / name)
    found = fault_in(path)
    assert found is not None and found.startswith(name)
    assert re.search(said, found)


def test_a_flipped_bit_in_the_mark_is_seen_too(tmp_path: Path) -> None:
    path = put_checkpoint(tmp_path, 3)
    mark = path / MARK
    whole = mark.read_bytes()
    names = json.loads(whole)["files"]
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        mark.write_bytes(data)
        if fault_in(path) is None:  # white space, or who checks a file: not what it holds
            changed = json.loads(data)["files"]
            for name, file in names.items():
                assert {**changed[name], "rank": 0} == {**file, "rank": 0}
    mark.unlink()
    assert "never completed" in (fault_in(path) or "")


def test_the_ranks_check_their_own_files_and_together_all(tmp_path: Path) -> None:
    path = put_checkpoint(tmp_path, 3)
    flip_one_bit(path / FILES[1][0])
    assert fault_in(path, (0, 2)) is None
    assert (fault_in(path, (1, 2)) or "").startswith(FILES[1][0])
    assert [fault_in(path, (rank, 3)) is None for rank in range(3)] == [True, False, True]
    assert fault_in(path, (0, 1)) is not None


def test_a_look_at_the_sizes_reads_no_file_but_the_state(tmp_path: Path) -> None:
    path = put_checkpoint(tmp_path, 3)
    flip_one_bit(path / FILES[0][0])
    assert fault_in(path, hashes=False) is None
    flip_one_bit(path / STATE)
    assert (fault_in(path, hashes=False) or "").startswith(f"{STATE} has the SHA-256")
    truncate(path / FILES[0][0])
    assert (fault_in(path, hashes=False) or "").startswith(f"{FILES[0][0]} has")


@pytest.mark.parametrize("name", [MARK, FILES[1][0]])
@pytest.mark.parametrize("failures", [1, 99])
def test_a_read_that_fails_is_tried_again_before_it_counts(
    tmp_path: Path, name: str, failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, left, opened = put_checkpoint(tmp_path, 3), [failures], Path.open

    def failing(file: Path, *args: Any, **more: Any) -> Any:
        if file == path / name and left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return opened(file, *args, **more)

    monkeypatch.setattr(Path, "open", failing)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    found = fault_in(path)
    assert (found is None) == (failures == 1)
    assert found is None or f"{name}: cannot be read after 5 tries (Input/output error)" in found


@pytest.mark.parametrize("staging", ["tmp_path", "memory"])
def test_files_move_within_and_between_file_systems(tmp_path: Path, staging: str) -> None:
    source = tmp_path / "from"
    if staging == "memory":
        source = MEMORY / f"eim-test-{os.getpid()}"
        if not MEMORY.is_dir() or MEMORY.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("no second file system here")
    data = os.urandom(9 << 20)  # several blocks
    (source / "engine").mkdir(parents=True)
    try:
        (source / "engine" / "big.pt").write_bytes(data)
        moved = move_in(source, writing_path(tmp_path, 1), 0)
        assert not any(each.is_file() for each in source.rglob("*"))
    finally:
        for each in sorted(source.rglob("*"), reverse=True):
            each.rmdir() if each.is_dir() else each.unlink()
        source.rmdir()
    complete(writing_path(tmp_path, 1), path_of(tmp_path, 1), moved)
    assert (path_of(tmp_path, 1) / "engine" / "big.pt").read_bytes() == data
    assert fault_in(path_of(tmp_path, 1)) is None


def test_a_file_that_rank_0_cannot_see_is_not_marked_complete(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "a.pt").write_bytes(b"1")
    moved = move_in(tmp_path / "from", writing_path(tmp_path, 1), 0)
    (writing_path(tmp_path, 1) / "a.pt").unlink()  # on the disk of another node, as it were
    with pytest.raises(OSError, match=r"a\.pt is missing: all ranks must write to one file system"):
        complete(writing_path(tmp_path, 1), path_of(tmp_path, 1), moved)
    assert not checkpoints(tmp_path)


def test_removal_keeps_what_was_measured_best_at_its_own_step(tmp_path: Path) -> None:
    for step, loss, at in ((1, 0.5, 1), (2, 0.1, 1), (3, 0.7, 3), (4, 0.9, 4), (5, 0.8, 5)):
        progress = {"validation": {"end": {"loss": loss}}, "validated_at": at}
        put_checkpoint(tmp_path, step, progress=progress)
    (tmp_path / "damaged-step-000007").mkdir()
    (tmp_path / "step-000009").mkdir()  # never completed, and newer than what is written now
    remove_outdated(tmp_path, 5, Retention(last=1, best="loss"))
    assert [each.name for each in checkpoints(tmp_path)] == [
        "step-000001",
        "step-000005",
        "step-000009",
    ]
    assert not (tmp_path / "damaged-step-000007").exists()
