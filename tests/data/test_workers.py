"""Loading processes that die: real processes, really killed; the items come all the same."""

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.data.workers import LoadedAhead, WorkerDeathError
from pipeline.errors import DataError


@dataclass(frozen=True)
class Numbers(Dataset[Tensor]):
    """Item n is a tensor of n; the process that loads `deadly` dies, as often as `marks` allows."""

    deadly: int = -1
    marks: Path | None = None
    deaths: int = 0

    def __getitem__(self, number: int) -> Tensor:
        marks = self.marks if number == self.deadly else None
        if marks is not None and len(list(marks.iterdir())) < self.deaths:
            (marks / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((300,), number)


def numbers_of(items: LoadedAhead[Tensor]) -> list[int]:
    return [int(item[0]) for item in items]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_items_come_in_order(workers: int) -> None:
    assert numbers_of(LoadedAhead(Numbers(), range(3, 20), workers=workers)) == [*range(3, 20)]
    assert numbers_of(LoadedAhead(Numbers(), range(3, 3), workers=workers)) == []


@pytest.mark.parametrize(("workers", "deaths"), [(1, 1), (2, 1)])
def test_workers_that_die_are_started_again_and_no_item_is_lost(
    tmp_path: Path, workers: int, deaths: int
) -> None:
    items = LoadedAhead(Numbers(5, tmp_path, deaths), range(12), workers=workers)
    assert numbers_of(items) == [*range(12)]
    assert items.restarts == len(list(tmp_path.iterdir())) == deaths


@pytest.mark.slow
def test_an_item_that_kills_its_worker_every_time_is_named(tmp_path: Path) -> None:
    came = []
    said = r"3 times at item 2 \(.*lower data.workers"
    with pytest.raises(WorkerDeathError, match=said) as caught:
        for item in LoadedAhead(Numbers(2, tmp_path, 99), range(9), workers=1):
            came.append(int(item[0]))
    assert came == [0, 1] and caught.value.number == 2


def test_a_death_interrupts_nothing_but_the_waiting_for_an_item(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    items = iter(LoadedAhead(Numbers(6, tmp_path, 1), range(9), workers=1))
    assert int(next(items)[0]) == 0
    assert signal.getsignal(signal.SIGCHLD) is before
    end = time.monotonic() + 20
    while not list(tmp_path.iterdir()) and time.monotonic() < end:
        assert int(next(items)[0]) < 6  # the worker works ahead
        time.sleep(0.3)  # a training step, in which it dies
    assert [int(item[0]) for item in items][-1] == 8


class Broken(Dataset[Tensor]):
    def __getitem__(self, number: int) -> Tensor:
        raise DataError("this one")


def test_an_items_own_error_stays_what_it_is_and_ends_the_workers() -> None:
    with pytest.raises(DataError, match="this one") as _held:
        next(iter(LoadedAhead(Broken(), range(2), workers=1)))
    end = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.05)
    assert not multiprocessing.active_children()  # though the error is still held here
