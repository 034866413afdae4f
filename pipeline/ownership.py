"""Who may write into a run directory: one attempt at a time, and never an older one again.

The owner's name lies in `owner.json` with a heartbeat. A second job is refused while the owner
lives; an owner that is dead, or an older attempt of the same Slurm job, is taken over. An attempt
that was taken over while it was cut off (a ghost: its node lost the network and came back) finds
another name there before it completes anything, and leaves. Assumes a file system that all nodes
share and clocks that differ by less than `STALE_SECONDS`.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import CheckpointError, ConfigError

OWNER = "owner.json"
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


@dataclass(frozen=True)
class Attempt:
    """One start of a run: a Slurm job with its restart count, or a process of this machine."""

    job: str
    restart: int
    host: str
    pid: int
    started: int  # the process's start in clock ticks since boot: pids are used again

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Attempt":
        """This process's: the job of the Slurm step that it is in, or none."""
        pid = os.getpid()
        return cls(
            job=environment.get("SLURM_JOB_ID", ""),
            restart=int(environment.get("SLURM_RESTART_COUNT", "0")),
            host=socket.gethostname(),
            pid=pid,
            started=_started(pid) or 0,
        )

    def __str__(self) -> str:
        where = f"process {self.pid} on {self.host}"
        return f"job {self.job}, restart {self.restart} ({where})" if self.job else where

    def follows(self, other: "Attempt") -> bool:
        """True where `other` is an attempt of the same job, and this one is no older."""
        return bool(self.job) and self.job == other.job and self.restart >= other.restart

    def is_dead(self) -> bool:
        """True where this machine knows that the process is no more."""
        return self.host == socket.gethostname() and _started(self.pid) != self.started


class Ownership:
    """This attempt's right to write into one run directory."""

    def __init__(self, folder: Path, attempt: Attempt) -> None:
        self._path = folder / OWNER
        self._attempt = attempt

    def take(self) -> None:
        """Makes this attempt the owner; ConfigError while another one lives."""
        found = _read(self._path)
        if found is not None:
            owner, silent = found
            alive = silent < STALE_SECONDS and not owner.is_dead()
            if owner != self._attempt and alive and not self._attempt.follows(owner):
                raise ConfigError(
                    f"{self._path.parent} is being written by {owner}, heard of {silent:.0f} s "
                    "ago; give another name=, stop that one, or wait until it has been silent for "
                    f"{STALE_SECONDS:.0f} s"
                )
        self.beat()

    def check(self) -> None:
        """Raises CheckpointError where another attempt has become the owner since."""
        found = _read(self._path)
        if found is None or found[0] != self._attempt:
            now = "nobody" if found is None else str(found[0])
            raise CheckpointError(
                f"{self._path.parent} belongs to {now} now, no more to {self._attempt}; this "
                "older attempt leaves it alone"
            )

    def beat(self) -> None:
        """Writes this attempt down with the time."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        writing = self._path.with_name(f".{OWNER}.{self._attempt.host}.{self._attempt.pid}")
        writing.write_text(json.dumps({**asdict(self._attempt), "heartbeat": time.time()}))
        writing.replace(self._path)

    def release(self) -> None:
        """Removes the name, if it is still this attempt's."""
        found = _read(self._path)
        if found is not None and found[0] == self._attempt:
            self._path.unlink(missing_ok=True)


@contextmanager
def owning(folder: Path, attempt: Attempt) -> Iterator[Ownership]:
    """Owns a run directory inside, with a heartbeat from a thread; for one process alone.

    Raises ConfigError while another one lives. The thread stops as soon as another attempt has
    taken over.
    """
    mine = Ownership(folder, attempt)
    mine.take()
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            try:
                mine.check()
                mine.beat()
            except CheckpointError:
                return
            except OSError:
                continue  # a file system that fails for a while makes no older attempt of us

    thread = threading.Thread(target=beat, name="owner-heartbeat", daemon=True)
    thread.start()
    try:
        yield mine
    finally:
        done.set()
        thread.join()
        mine.release()


def _read(path: Path) -> tuple[Attempt, float] | None:
    """The owner and for how many seconds it has been silent; None where there is none."""
    try:
        found = json.loads(path.read_bytes())
        silent = time.time() - float(found.pop("heartbeat"))
        return Attempt(**found), silent
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _started(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat; None where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
