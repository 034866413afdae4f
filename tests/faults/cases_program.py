"""A program for several ranks: stages with a fault in them, at a place and a moment that are known.

    RANK=... WORLD_SIZE=... python tests/faults/cases_program.py CASES.json

CASES.json is a list of {"stage", "arguments", "fault"}. A fault is {"rank", "target", "call",
"what"}: on that rank (null: on all) the function `target`, at its `call`-th call of the case, does
`what` first. A single case runs as its stage would; several run one after another in one launch,
each with a watch of its own, which is how stops in good order are tried without starting anew.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from pipeline import dist
from pipeline.config import Config
from pipeline.evaluation.runner import evaluate
from pipeline.prerequisites import ensure
from pipeline.presence import Presence
from pipeline.recipe import load_recipe
from pipeline.run import run_phase
from pipeline.stage import configure_logging, run_body, run_stage
from pipeline.watch.watcher import Watch


def main() -> None:
    """One case as a stage, or several in a row."""
    cases = json.loads(Path(sys.argv[1]).read_text())
    if len(cases) == 1:
        run_stage(stage_of(cases[0]), cases[0]["arguments"])
        return
    world = dist.start()
    configure_logging(speaks=world.is_main)
    for case in cases:
        config = load_recipe(case["arguments"])
        fresh = replace(world, presence=Presence())
        watch = Watch(fresh, config.timeout)
        try:
            run_body(stage_of(case), config, fresh)
        except Exception as error:  # noqa: BLE001 - as the stages have it
            watch.fail(error)
        watch.close()
    dist.stop()
    os._exit(0)


def stage_of(case: dict[str, Any]) -> Callable[[Config, dist.World], None]:
    """What `stages/<stage>.py` does, with the case's fault in it."""

    def body(config: Config, world: dist.World) -> None:
        with faulty(case.get("fault"), config, world):
            if not ensure(config, world, until=case["stage"]):
                return
            if case["stage"] == "evaluate":
                evaluate(config, world)
            else:
                run_phase(config, case["stage"], world)

    return body


@contextlib.contextmanager
def faulty(fault: dict[str, Any] | None, config: Config, world: dist.World) -> Iterator[None]:
    """Puts the fault into its target while the case goes on."""
    if fault is None or fault["rank"] not in (None, world.rank):
        yield
        return
    owner_name, _, name = fault["target"].rpartition(".")
    owner = resolve_name(owner_name)
    original = getattr(owner, name)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        due = calls >= fault["call"] if fault["what"] == "nan" else calls == fault["call"]
        if due and fault["what"] == "nan":
            loss, *others = original(*args, **kwargs)
            return loss * float("nan"), *others
        if due:
            happen(fault["what"], Path(config.runs) / config.name)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)
    try:
        yield
    finally:
        setattr(owner, name, original)


def happen(what: str, run: Path) -> None:
    """The fault itself, and a file `happened` that says when."""
    (run / "happened").touch()
    match what:
        case "raise":
            raise ValueError("a fault made on purpose")
        case "memory":
            raise MemoryError
        case "hang":
            threading.Event().wait()
        case "hold":
            ctypes.PyDLL(None).sleep(600)  # in C, without giving Python's lock back
        case "file":
            (run / "STOP").touch()
        case _:
            os.kill(os.getpid(), signal.Signals[what])
            time.sleep(0.2)  # a small validation may be over before the watch has read it


if __name__ == "__main__":
    main()
