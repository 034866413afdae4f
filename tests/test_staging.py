"""Where checkpoints are written first."""

import os
from pathlib import Path

import pytest

from pipeline.config import CheckpointsConfig
from pipeline.staging import choose_place, fresh, staging_places

MEMORY = Path("/dev/shm")


def places(run: Path, staging: Path | None = None) -> list[Path]:
    return staging_places(CheckpointsConfig(staging=staging and str(staging)), run)


def test_a_named_folder_is_taken_whatever_it_is_like(tmp_path: Path) -> None:
    found = places(tmp_path / "run", tmp_path / "mine")
    assert choose_place(found, tmp_path / "run", 1e30).parent == tmp_path / "mine"


def test_runs_have_their_own_places_and_find_them_again(tmp_path: Path) -> None:
    a, b, again = (places(tmp_path / run, tmp_path) for run in ("a", "b", "b/../a"))
    assert a == again != b


def test_tmpdir_serves_only_where_it_is_another_disk_with_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.delenv("TMPDIR", raising=False)
    assert choose_place(places(run), run, 1.0) == run / ".staging"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert choose_place(places(run), run, 1.0) == run / ".staging"  # a move there is a rename
    if not MEMORY.is_dir() or MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    monkeypatch.setenv("TMPDIR", str(MEMORY))
    assert choose_place(places(run), run, 1.0).parent == MEMORY
    assert choose_place(places(run), run, 1e30) == run / ".staging"
    for broken in ("/dev/null", "/dev/null/x", str(MEMORY / "not" / "there")):
        monkeypatch.setenv("TMPDIR", broken)
        assert choose_place(places(run), run, 1.0) == run / ".staging"


def test_a_fresh_folder_is_empty_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "place" / "rank-00000"
    for _ in range(2):
        fresh(folder)
        assert not list(folder.iterdir())
        assert folder.stat().st_mode & 0o077 == folder.parent.stat().st_mode & 0o077 == 0
        assert folder.stat().st_uid == os.getuid()
        (folder / "left").touch()
