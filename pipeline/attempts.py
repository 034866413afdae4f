"""Which start of a run a process belongs to, and whether that one can still be alive.

Knows Slurm's variables and this machine's processes; no files of a run, no other ranks.
"""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Attempt:
    """One start of a run: a Slurm job with its restart count, or a process on its own."""

    job: str  # cluster and number; empty without Slurm
    restart: int
    host: str
    space: str  # where `pid` means this process: the machine's boot, and the container in it
    pid: int
    started: int  # in clock ticks since boot: process numbers are used again
    since: float  # in seconds since 1970

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Attempt":
        """This process's: of the Slurm job that it is in, or of none."""
        pid, number = os.getpid(), environment.get("SLURM_JOB_ID", "")
        return cls(
            job=f"{environment.get('SLURM_CLUSTER_NAME', '')}/{number}" if number else "",
            restart=int(environment.get("SLURM_RESTART_COUNT") or 0),
            host=environment.get("SLURMD_NODENAME") or socket.gethostname(),
            space=_space(),
            pid=pid,
            started=_started(pid) or 0,
            since=time.time(),
        )

    def __str__(self) -> str:
        who = f"process {self.pid} on {self.host}"
        if self.job:
            who = f"job {self.job.rpartition('/')[2]}, restart {self.restart} ({who})"
        return f"{who}, since {time.strftime('%F %T', time.localtime(self.since))}"

    def follows(self, other: "Attempt") -> bool:
        """True where `other` is an older attempt of the same Slurm job."""
        return bool(self.job) and self.job == other.job and self.restart > other.restart

    def runs(self) -> bool | None:
        """Whether the process is there; None where this process cannot know."""
        return None if self.space != _space() else _started(self.pid) == self.started


def _space() -> str:
    """The boot of this kernel, and the process numbers' namespace; host names may be anything."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"


def _started(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat; None where there is no such process, or but its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
