"""Shards are copied to a node's own disk whole and checked, or read where they lie."""

import hashlib
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from pipeline.data.stage import Stage

Usage = namedtuple("Usage", "total used free")
CONTENT = os.urandom(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shared" / "00001.tar"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "disk" / "shards")


def copied(stage: Stage, shard: Path, sha256: str | None = SHA256) -> Path:
    return stage.copy_of(shard, size=len(CONTENT), sha256=sha256)


def partial(stage: Stage, shard: Path, content: bytes, sha256: str | None = SHA256) -> None:
    """What a killed process leaves."""
    copy = copied(stage, shard, sha256)
    copy.with_name(f".{copy.name}.part").write_bytes(content)
    copy.unlink()


def test_a_shard_is_copied_once_and_is_the_same_to_the_time(stage: Stage, shard: Path) -> None:
    copy = copied(stage, shard)
    assert copy.parent == stage.folder and copy.read_bytes() == CONTENT
    assert copy.stat().st_mtime_ns == shard.stat().st_mtime_ns
    made = copy.stat().st_ino
    assert copied(Stage(stage.folder), shard) == copy and copy.stat().st_ino == made
    assert stage.folder.stat().st_mode & 0o777 == 0o700


def test_a_shard_that_was_replaced_is_copied_again(stage: Stage, shard: Path) -> None:
    first = copied(stage, shard, None)
    shard.write_bytes(CONTENT[::-1])
    second = copied(stage, shard, None)
    assert second != first and second.read_bytes() == CONTENT[::-1]


def test_a_copy_that_was_broken_off_goes_on_where_it_was(
    stage: Stage, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial(stage, shard, CONTENT[:2_000_000])
    read = []

    def counting(source: object, target: object, block: int) -> None:
        read.append(source.tell())  # type: ignore[attr-defined]
        copy(source, target, block)

    copy = shutil.copyfileobj
    monkeypatch.setattr(shutil, "copyfileobj", counting)
    assert copied(stage, shard).read_bytes() == CONTENT
    assert read == [2_000_000]


@pytest.mark.parametrize("content", [b"something else", CONTENT[:-9] + b"wrong end", CONTENT * 2])
def test_what_lies_in_the_way_of_a_copy_does_not_become_part_of_it(
    stage: Stage, shard: Path, content: bytes
) -> None:
    partial(stage, shard, content)
    assert copied(stage, shard).read_bytes() == CONTENT and not stage.refused


def test_without_a_hash_nothing_that_a_killed_process_left_is_used(
    stage: Stage, shard: Path
) -> None:
    partial(stage, shard, bytes(2_000_000), None)
    assert copied(stage, shard, None).read_bytes() == CONTENT and not stage.refused


def test_a_shard_with_another_hash_is_read_where_it_lies_and_counted(
    stage: Stage, shard: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert copied(stage, shard, "0" * 64) == shard == copied(stage, shard, "0" * 64)
    assert stage.refused == {shard: "its SHA-256 is not the manifest's"}
    assert [each.name for each in stage.folder.iterdir() if each.suffix != ".lock"] == []


def test_a_full_disk_leaves_a_tenth_to_others_and_is_counted(
    stage: Stage, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 10_000_000 + len(CONTENT)  # of 100 MB
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100_000_000, 0, free))
    assert copied(stage, shard) != shard
    other = shard.with_name("00002.tar")
    other.write_bytes(CONTENT)
    free -= 1
    assert copied(stage, other) == other
    assert stage.refused == {other: "No space left on device"}


def test_a_folder_that_cannot_be_used_costs_no_run(tmp_path: Path, shard: Path) -> None:
    (tmp_path / "file").touch()
    stage = Stage(tmp_path / "file" / "shards")
    assert copied(stage, shard) == shard
    assert list(stage.refused.values()) == ["Not a directory"]
