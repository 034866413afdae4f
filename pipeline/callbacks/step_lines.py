"""A file of JSON lines about single steps, beside a phase's summary: which samples were in them.

A resumed run does the steps after its checkpoint again: their lines of the earlier start go first.
"""

import json
import math
from pathlib import Path
from typing import Any

from pipeline.dist import World, gather_json
from pipeline.durable import write_text
from pipeline.trainer import StepRecord


class StepLines:
    """Written by rank 0, from what all ranks know."""

    def __init__(self, path: Path, world: World) -> None:
        self._path, self._world = path, world

    def start(self, done: int) -> None:
        """Keeps what was written of the steps up to `done`."""
        if not self._world.is_main or not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [each for each in lines if _step(each, done + 1) <= done]
        if len(kept) < len(lines):
            write_text(self._path, "".join(kept))

    def add(self, record: StepRecord, **more: Any) -> list[str]:
        """One line about a step, with each rank's share of the loss and its samples' keys.

        Every rank calls it. Returns all keys.
        """
        mine = {"loss": json_number(record.loss_share), "keys": list(record.keys)}
        ranks = gather_json(mine, self._world)
        if self._world.is_main:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": record.step, **more, "ranks": ranks}) + "\n")
        return [key for each in ranks for key in each["keys"]]


def _step(line: str, otherwise: int) -> int:
    """The step of a line; a line may be torn where its writer was killed."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return otherwise


def json_number(value: float) -> float | str:
    """JSON has no words for what is not finite."""
    return value if math.isfinite(value) else str(value)


def listed(keys: list[str], most: int = 8) -> str:
    """The first keys of many, as text."""
    more = len(keys) - most
    return ", ".join(keys[:most]) + (f" and {more} more" if more > 0 else "")
