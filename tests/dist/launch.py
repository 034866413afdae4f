"""Starts stages and test programs on one or more ranks.

Most are forked from a process that is warm (`tests/warm.py`); where the start itself is the point,
the deepspeed launcher, torchrun or plain python starts them, as users do.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.helpers import REPOSITORY
from tests.warm import start_rank

BIN = Path(sys.executable).parent
_TIMEOUT = 400  # seconds
_PATIENCE = 60  # for the other ranks, after one has failed


def launch(
    script: str,
    arguments: Sequence[str],
    *,
    ranks: int,
    launcher: str = "warm",
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs `script` (relative to the repository) on `ranks` processes; output is captured.

    launcher: warm, deepspeed, torchrun or python. variables: of the environment, besides and over
    those that all tests set.
    """
    shared = {"OMP_NUM_THREADS": "1", "EIM_THREADS": "1", **(variables or {})}
    if launcher == "warm":
        return _launch_warm(script, arguments, ranks, shared)
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
        "PYTHONPATH": str(REPOSITORY),
        **shared,
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


def _launch_warm(
    script: str, arguments: Sequence[str], ranks: int, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """As a launcher does: the first rank that fails gives the code; none outlives the call."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = (Path(folder, name) for name in ("output", "errors"))
        processes = [
            start_rank(*(script, arguments, dict(variables) | place), output=output, errors=errors)
            for place in places(ranks)
        ]
        end, code = time.monotonic() + _TIMEOUT, 0
        while any(each.exitcode is None for each in processes) and time.monotonic() < end:
            time.sleep(0.02)
            failed = [each.exitcode for each in processes if each.exitcode]
            if failed and not code:
                code, end = failed[0], min(end, time.monotonic() + _PATIENCE)
        for process in processes:
            process.kill()
            process.join()
        said = [path.read_text() if path.exists() else "" for path in (output, errors)]
    if time.monotonic() > end and not code:
        raise subprocess.TimeoutExpired(script, _TIMEOUT, *said)
    return subprocess.CompletedProcess([script, *arguments], code, *said)


def places(ranks: int) -> list[dict[str, str]]:
    """The variables that tell each rank of a launch its place; a single one is told nothing."""
    if ranks == 1:
        return [{}]
    port = free_port()
    return [
        {
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        }
        for rank in range(ranks)
    ]


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    """The standard output of a run that must have ended well."""
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def free_port() -> str:
    """A TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
