"""Ranks that start at once: forked from a process that has imported everything.

Importing torch, deepspeed and transformers costs a rank eight seconds of CPU, which is more than
most tests train. What is forked here is a process of its own with its own arguments, environment
and output, which joins the others over gloo like any rank. What a launcher does is not tried here:
tests of that start real ones (`tests/dist/launch.py`).
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from tests.helpers import REPOSITORY

Rank = ForkServerProcess

_CONTEXT: ForkServerContext = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.warm_imports"])


def start_rank(
    script: str,
    arguments: Sequence[str],
    variables: Mapping[str, str],
    *,
    output: Path,
    errors: Path,
) -> Rank:
    """`python SCRIPT ARGUMENTS` in a process that runs already; its streams are appended to files.

    script: relative to the repository, where the process works. variables: of its environment,
    besides and over this process's own. `exitcode` of what is returned is None until it has ended,
    and minus the signal that ended it.
    """
    process = _CONTEXT.Process(
        target=_be_rank, args=(script, [*arguments], dict(variables), str(output), str(errors))
    )
    process.start()
    return process


def _be_rank(
    script: str, arguments: list[str], variables: dict[str, str], output: str, errors: str
) -> None:
    for path, stream in ((output, sys.stdout), (errors, sys.stderr)):
        opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(opened, stream.fileno())
        os.close(opened)
        stream.reconfigure(line_buffering=True)
    # As in a process that was started anew: what a rank starts (its loading workers) it forks, so
    # that they are its children, and end with it.
    multiprocessing.set_start_method("fork", force=True)
    os.chdir(REPOSITORY)
    for name in [each for each in os.environ if each.startswith(("SLURM", "RANK"))]:
        del os.environ[name]
    os.environ.update(variables)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
