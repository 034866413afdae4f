"""Files that a crash leaves whole."""

import os
from pathlib import Path

import pytest

from pipeline.durable import write_text


def test_a_text_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, named = tmp_path / "a.json", []
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: named.append(path.read_text()))
    write_text(path, "new")
    assert named[:1] == ["old"] and path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
