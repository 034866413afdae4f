"""A launch whose processes can be found, killed and waited for, as a cluster's agent would.

Every process of a launch carries a mark in its environment, so that orphans (of a killed launcher,
of a killed rank's loading workers) are found wherever they went. Reads /proc, so Linux only.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.dist.launch import BIN, free_port
from tests.helpers import REPOSITORY

_MARK = "EIM_TEST_LAUNCH"
_POLL_SECONDS = 0.01


@dataclass
class Launch:
    """A running launch; its output is read by a thread, line by line.

    Attributes: process: the launcher's; lines: the output so far, both streams, with the second
    (time.monotonic) at which each came.
    """

    process: subprocess.Popen[str]
    mark: str
    lines: list[tuple[float, str]] = field(default_factory=list)
    _reader: threading.Thread | None = None

    @classmethod
    def start(cls, script: str, arguments: Sequence[str], *, ranks: int) -> "Launch":
        """`deepspeed --num_gpus RANKS SCRIPT ARGUMENTS` in a session of its own."""
        mark = uuid.uuid4().hex
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "RANK"))}
        environment |= {
            _MARK: mark,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUNBUFFERED": "1",  # a line counts when it is said, not when a buffer is full
            "EIM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        options = ["--log_level", "error", "--master_port", free_port(), "--num_gpus", str(ranks)]
        process = subprocess.Popen(
            [sys.executable, str(BIN / "deepspeed"), *options, script, *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        launch = cls(process, mark)
        launch._reader = threading.Thread(target=launch._read, daemon=True)
        launch._reader.start()
        return launch

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    @property
    def output(self) -> str:
        """All that was said so far."""
        return "\n".join(line for _, line in self.lines)

    def processes(self) -> list[int]:
        """All living processes of this launch, the launcher among them."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._has(pid)]

    def ranks(self) -> dict[int, int]:
        """Rank -> pid; a rank's loading workers, which are its forks, are not listed."""
        found = {pid: _rank(pid) for pid in self.processes()}
        ranks = {pid: rank for pid, rank in found.items() if rank is not None}
        return {rank: pid for pid, rank in ranks.items() if _parent(pid) not in ranks}

    def launchers(self) -> list[int]:
        """The processes that no rank is above: the launcher's own."""
        return [pid for pid in self.processes() if _rank(pid) is None]

    def workers(self, rank: int) -> list[int]:
        """The loading workers (and other children) of a rank."""
        pid = self.ranks().get(rank)
        return [each for each in self.processes() if pid is not None and _parent(each) == pid]

    def kill(self, pids: Sequence[int]) -> list[int]:
        """SIGKILL; returns those that were still there."""
        hit = []
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            hit.append(pid)
        return hit

    def wait_until_gone(self, seconds: float) -> bool:
        """True when all processes end by themselves within that time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.process.poll()  # the launcher would stay a zombie
            if not self.processes():
                return True
            time.sleep(5 * _POLL_SECONDS)
        return not self.processes()

    def end(self, seconds: float) -> int | None:
        """Waits for the launch to end, kills what is left; the launcher's code, None if killed."""
        in_time = self.wait_until_gone(seconds)
        while left := self.processes():
            self.kill(left)
            self.process.poll()
            time.sleep(_POLL_SECONDS)
        code = self.process.wait()
        if self._reader is not None:
            self._reader.join(10)
        return code if in_time else None

    def wait_for_line(self, pattern: str, seconds: float) -> re.Match[str] | None:
        """The first line that fits, when it comes; None where the launch ends before."""
        end, seen = time.monotonic() + seconds, 0
        while True:
            over = self.process.poll() is not None or time.monotonic() > end
            while seen < len(self.lines):
                found = re.search(pattern, self.lines[seen][1])
                seen += 1
                if found:
                    return found
            if over:
                return None
            time.sleep(_POLL_SECONDS)

    def _has(self, pid: int) -> bool:
        return f"{_MARK}={self.mark}".encode() in _proc(pid, "environ").split(b"\0")


def _rank(pid: int) -> int | None:
    """The rank that a process was started as; the launcher and others have none."""
    variables = _proc(pid, "environ").split(b"\0")
    ranks = [each[5:] for each in variables if each.startswith(b"RANK=")]
    return int(ranks[0]) if ranks else None


def _parent(pid: int) -> int:
    fields = _proc(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0


def _proc(pid: int, name: str) -> bytes:
    """A file of /proc; empty for a process that is gone, a zombie or another user's."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
