"""Who may write into a folder, with real processes where one has to be dead or alive."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import ownership
from pipeline.attempts import Attempt
from pipeline.dist import planned
from pipeline.errors import OwnerError
from pipeline.ownership import Claim, owning

ALONE = Attempt.of({})
JOB = Attempt.of({"SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "c"})
ELSEWHERE = {"host": "n9", "space": "another machine"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.05)


def claim(folder: Path, attempt: Attempt | None = None, stale: float = 60.0) -> Claim:
    return Claim(folder, attempt or Attempt.of({}), stale=stale)


def taken(folder: Path, attempt: Attempt | None = None) -> Claim:
    made = claim(folder, attempt)
    made.take()
    return made


@contextmanager
def forked(work: Callable[[], object]) -> Iterator[int]:
    """A process that does some work; killed at the end."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def process(work: Callable[[], object]) -> Iterator[int]:
    """A forked process whose work is done, and that lives on inside."""

    def waits() -> None:
        work()
        os.write(writing, b"1")
        time.sleep(60)

    reading, writing = os.pipe()
    with forked(waits) as pid:
        os.close(writing)
        assert os.read(reading, 1) == b"1"
        os.close(reading)
        yield pid


def test_a_second_process_is_refused_in_one_line_that_names_the_first(tmp_path: Path) -> None:
    job = {"SLURM_JOB_ID": "31"}
    first = process(lambda: taken(tmp_path, Attempt.of(job)))
    with first as pid, pytest.raises(OwnerError) as refused:
        claim(tmp_path).take()
    said = str(refused.value)
    assert f"job 31, restart 0 (process {pid} on {ALONE.host}), since 20" in said
    assert "last heard of 0 s ago" in said and "give another name=" in said and "\n" not in said


def test_what_was_killed_is_taken_over_at_once(tmp_path: Path) -> None:
    with process(lambda: taken(tmp_path)):
        pass
    began = time.monotonic()
    assert claim(tmp_path).take() == 1
    assert time.monotonic() - began < 1.0


def test_of_many_that_start_together_one_owns_the_folder(tmp_path: Path) -> None:
    def compete() -> None:
        os.close(writing)
        os.read(starting, 1)  # returns for all at once
        try:
            taken(tmp_path)
        except OwnerError:
            os._exit(2)
        time.sleep(60)  # alive while the others look

    starting, writing = os.pipe()
    with contextlib.ExitStack() as together:
        children = [together.enter_context(forked(compete)) for _ in range(12)]
        os.close(writing)
        refused: set[int] = set()
        until = time.monotonic() + 30
        while len(refused) < 11 and time.monotonic() < until:
            refused = {pid for pid in children if _exit_code(pid) == 2}
            time.sleep(0.05)
        (owner,) = set(children) - refused
        assert _exit_code(owner) is None, "it lives, and owns the folder"


def _exit_code(pid: int) -> int | None:
    """Of a process that has ended; it stays to be waited for."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return None if found is None else found.si_status


def test_who_is_silent_on_another_machine_is_waited_for_and_taken_over(tmp_path: Path) -> None:
    gone = taken(tmp_path, replace(ALONE, **ELSEWHERE))
    waited: list[int] = []
    claim(tmp_path, stale=0.3).take(lambda: waited.append(1))
    assert waited
    with pytest.raises(OwnerError, match="was taken over by process"):
        gone.check()


def test_who_beats_on_another_machine_is_not_taken_over(tmp_path: Path) -> None:
    living = taken(tmp_path, replace(ALONE, **ELSEWHERE))
    with pytest.raises(OwnerError, match=r"is being written by process .* on n9"):
        claim(tmp_path).take(living.beat)
    living.check()


def test_a_newer_attempt_of_a_job_takes_over_at_once_and_its_ghost_never_again(
    tmp_path: Path,
) -> None:
    ghost = taken(tmp_path, replace(JOB, **ELSEWHERE))
    newer = taken(tmp_path, replace(JOB, restart=1))
    with pytest.raises(OwnerError, match="taken over by job 7, restart 1"):
        ghost.check()
    with pytest.raises(FileNotFoundError):
        ghost.beat()
    newer.release()
    with pytest.raises(OwnerError, match="a newer attempt of this job"):
        claim(tmp_path, JOB).take()
    ghost.release()
    assert claim(tmp_path).take() == 2, "nothing of the ghost is in the way"


def test_an_equal_attempt_of_a_job_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    job = {"SLURM_JOB_ID": "7"}
    first = process(lambda: taken(tmp_path, Attempt.of(job)))
    with first, pytest.raises(OwnerError, match="is being written by job 7, restart 0"):
        claim(tmp_path, Attempt.of(job)).take()


def test_what_is_released_can_be_taken_at_once(tmp_path: Path) -> None:
    for number in range(3):
        mine = claim(tmp_path, replace(ALONE, **ELSEWHERE))
        assert mine.take() == number
        mine.check()
        mine.release()
    assert [each.name for each in (tmp_path / ".owner").iterdir()] == ["000002.released"]


@pytest.mark.parametrize("backwards", [False, True])  # a folder has no order
def test_a_number_that_was_released_meanwhile_is_not_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    link, listed, others = os.link, Path.iterdir, [replace(ALONE, **ELSEWHERE)]

    def slow(draft: Path, mark: Path) -> None:
        if others:
            taken(tmp_path, others.pop()).release()
        link(draft, mark)

    monkeypatch.setattr(os, "link", slow)
    monkeypatch.setattr(Path, "iterdir", lambda self: sorted(listed(self), reverse=backwards))
    mine = claim(tmp_path)
    assert mine.take() == 1
    mine.check()
    assert [each.name for each in (tmp_path / ".owner").iterdir()] == ["000001.json"]


def test_a_file_that_names_nobody_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / ".owner").mkdir()
    (tmp_path / ".owner" / "000004.json").write_text("[]")
    with pytest.raises(OwnerError, match=r"000004.json does not name an owner; delete it"):
        claim(tmp_path).take()


def test_an_owner_beats_and_notices_when_it_is_taken_over(tmp_path: Path) -> None:
    world = planned()
    with owning(tmp_path, world) as mine:
        mark = next((tmp_path / ".owner").glob("*.json"))
        first = mark.stat().st_mtime_ns
        time.sleep(0.3)
        assert mark.stat().st_mtime_ns > first and not mine.lost
        mine.check()
        mark.rename(mark.with_name("000009.json"))
        time.sleep(0.3)
        assert mine.lost
        with pytest.raises(OwnerError):
            mine.check()
