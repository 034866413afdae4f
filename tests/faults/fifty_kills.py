"""Fifty kills over the three phases, by hand, with a log of JSON lines.

    python -m tests.faults.fifty_kills [--kills 50] [--seed N] [--log FILE] [--folder FOLDER]

The first line of the log is what was run, then follows one line for each kill (see `kills.Kill`),
and the last is the result. Exit code 1 where the killed run differs from the undisturbed one.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.kills import RANKS, differences, killed_until_finished, prepare, undisturbed
from tests.helpers import REPOSITORY

_EPOCHS = 6  # of four steps, in each phase


def main() -> int:
    """Runs it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--log", type=Path, default=Path("kills.jsonl"))
    parser.add_argument("--folder", type=Path, help="kept; a temporary one otherwise")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, asked.log.open("w") as log:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)

        def say(line: dict[str, object]) -> None:
            text = json.dumps(line)
            log.write(f"{text}\n")
            log.flush()
            print(text, flush=True)

        began = time.monotonic()
        say({"seed": asked.seed, "kills": asked.kills, "ranks": RANKS, **_circumstances()})
        recipe = prepare(folder, epochs=_EPOCHS)
        whole, position = undisturbed(folder, recipe)
        run = killed_until_finished(folder, recipe, position, kills=asked.kills, seed=asked.seed)
        happened = 0
        for kill in run:
            happened += kill.killed > 0
            say(asdict(kill))
        found = differences(whole, folder / "killed" / "run")
        say(
            {
                "result": "the same, bit for bit" if not found else "different",
                "differences": found,
                "kills": happened,
                "steps": len(position.order),
                "minutes": round((time.monotonic() - began) / 60, 1),
            }
        )
    return int(bool(found))


def _circumstances() -> dict[str, object]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True
    )
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "processors": os.cpu_count(),
    }


if __name__ == "__main__":
    sys.exit(main())
