"""A file in the run's folder asks once, wherever of the two places it lies."""

from pathlib import Path

import pytest
import torch

from pipeline.callbacks import requests
from pipeline.callbacks.requests import RequestFile
from pipeline.dist import World


def world(rank: int) -> World:
    return World(rank, 2, rank, 2, torch.device("cpu"))


@pytest.mark.parametrize("place", ["run", "run/phase"])
def test_a_file_asks_until_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(requests, "_SECONDS", 0.0)
    phase = tmp_path / "run" / "phase"
    phase.mkdir(parents=True)
    main, other = (RequestFile("SAVE", (phase, phase.parent), world(rank)) for rank in (0, 1))
    assert not main.seen()
    (tmp_path / place / "SAVE").touch()
    assert main.seen() and main.seen()
    assert not other.seen()  # one rank looks, all agree on what it saw
    other.done()
    assert main.seen()
    main.done()
    assert not main.seen()
    assert not list(tmp_path.rglob("SAVE"))


def test_the_file_system_is_asked_at_most_once_a_second(tmp_path: Path) -> None:
    request = RequestFile("SAVE", (tmp_path,), world(0))
    assert not request.seen()
    (tmp_path / "SAVE").touch()
    assert not request.seen()
