"""Starts the ranks of `cases_program.py` without a launcher that would meddle.

So a test sees what each rank does, when it ends, and with which code.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.dist.launch import places
from tests.small import build
from tests.tiny import TIGHT_ZERO3
from tests.warm import Rank, start_rank

PROGRAM = "tests/faults/cases_program.py"

# Where faults are put.
STEP = "pipeline.objectives.LanguageObjective.step"
FORWARD = "pipeline.objectives.LanguageTask.forward"


@dataclass
class Ended:
    """What became of one launch."""

    codes: list[int | None]  # of each rank; None: still there in the end
    seconds: float  # from the beginning of the wait to the end of the last one
    at: float  # the time when the last one ended
    output: str
    errors: str

    @property
    def last_line(self) -> str:
        """The last thing printed."""
        return self.errors.rstrip().splitlines()[-1]


def small_recipe(folder: Path, **changes: Any) -> str:
    """Shards, weights, and a recipe in which ST alignment starts from the base weights."""
    tight = folder / "tight.json"
    tight.write_text(json.dumps(TIGHT_ZERO3))
    shared = {"encoder_adapt__enabled": False, "data__workers": 1, "timeout": 15.0}
    shared |= {"st_align__epochs": 2, "st_align__sample_images": 0}
    return f"recipe={build(folder, ds_config=str(tight), **shared | changes)}"


def start(folder: Path, cases: list[dict[str, Any]], *, ranks: int) -> list[Rank]:
    """The processes of a launch; their output goes into files of `folder`."""
    path = folder / "cases.json"
    path.write_text(json.dumps(cases))
    shared = {"OMP_NUM_THREADS": "1", "EIM_THREADS": "1"}
    streams = {name: folder / name for name in ("output", "errors")}
    return [start_rank(PROGRAM, [str(path)], shared | place, **streams) for place in places(ranks)]


def finish(processes: list[Rank], folder: Path, *, seconds: float) -> Ended:
    """Waits until all have ended, kills what has not."""
    began = last = time.monotonic()
    codes: list[int | None] = [None] * len(processes)
    while None in codes and time.monotonic() - began < seconds:
        for rank, process in enumerate(processes):
            if codes[rank] is None and process.exitcode is not None:
                codes[rank], last = process.exitcode, time.monotonic()
        time.sleep(0.05)
    for process in processes:
        process.kill()
        process.join()
    output, errors = ((folder / name).read_text() for name in ("output", "errors"))
    at = time.time() - (time.monotonic() - last)
    return Ended(codes, last - began, at, output, errors)


def run(folder: Path, cases: list[dict[str, Any]], *, ranks: int, seconds: float = 300.0) -> Ended:
    """A whole launch."""
    return finish(start(folder, cases, ranks=ranks), folder, seconds=seconds)


def case(
    arguments: list[str], *, stage: str = "st_align", fault: tuple[Any, ...] | None = None
) -> dict[str, Any]:
    """A case; fault: rank (None: all), target, call, what."""
    named = None if fault is None else dict(zip(("rank", "target", "call", "what"), fault))  # noqa: B905
    return {"stage": stage, "arguments": arguments, "fault": named}
