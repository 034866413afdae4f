"""A wish to stop: from whom it comes, and where it is obeyed."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.dist import World
from pipeline.errors import DataError
from pipeline.presence import Presence
from pipeline.stopping import Stopped, agreed_stop, stop_if_asked, stoppable


def world() -> World:
    return World(0, 1, 0, 1, torch.device("cpu"))


def test_nobody_asked() -> None:
    here = world()
    assert agreed_stop(here) is None
    stop_if_asked(here)
    assert list(stoppable([1, 2, 3], here)) == [1, 2, 3]
    assert here.presence.beats == 3


def test_a_validation_is_broken_off_before_its_next_batch() -> None:
    here, seen = world(), []
    with pytest.raises(Stopped, match="SIGTERM at rank 3"):
        for batch in stoppable([1, 2, 3], here):
            seen.append(batch)
            here.presence.asked = "SIGTERM at rank 3"
    assert seen == [1]


def test_a_fault_in_the_next_batch_is_raised_after_the_batches_before_it() -> None:
    closed = []

    def batches() -> Iterator[int]:
        try:
            yield 1
            raise DataError("shard-000001.tar is gone")
        finally:
            closed.append(True)

    seen = []
    with pytest.raises(DataError, match=r"shard-000001\.tar is gone"):
        for batch in stoppable(batches(), world()):
            seen.append(batch)
    assert (seen, closed) == ([1], [True])


def test_a_file_asks_once_and_an_old_one_is_removed(tmp_path: Path) -> None:
    file, presence = tmp_path / "STOP", Presence()
    file.touch()
    assert presence.obey(file) and not file.exists()
    assert presence.stop_asked() is None
    file.touch()
    assert not presence.obey(file) and file.exists()  # the next phase of the same start
    time.sleep(1.05)
    assert presence.stop_asked() == f"the file {file}"


def test_a_file_of_this_start_counts_although_it_was_there_first(tmp_path: Path) -> None:
    file, presence = tmp_path / "stop", Presence()
    file.touch()
    assert not presence.obey(file, own=True) and file.exists()
    assert presence.stop_asked() == f"the file {file}"
