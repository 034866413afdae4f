"""Starts stages and test programs as users do: the deepspeed launcher, torchrun, plain python."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.helpers import REPOSITORY

BIN = Path(sys.executable).parent
_TIMEOUT = 400


def launch(
    script: str,
    arguments: Sequence[str],
    *,
    ranks: int,
    launcher: str = "deepspeed",
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs `script` (relative to the repository) on `ranks` processes; output is captured.

    variables: of the environment, besides and over those that all tests set.
    """
    command = {
        "deepspeed": [
            str(BIN / "deepspeed"),
            "--master_port",
            free_port(),
            "--num_gpus",
            str(ranks),
        ],
        "torchrun": [
            *(str(BIN / "torchrun"), "--nproc-per-node", str(ranks)),
            *("--master-port", free_port()),
        ],
        "python": [sys.executable],
    }[launcher]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "RANK"))}
    environment |= {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "EIM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
        **(variables or {}),
    }
    return subprocess.run(
        [*command, script, *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    """The standard output of a run that must have ended well."""
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def free_port() -> str:
    """A TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
