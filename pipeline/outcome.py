"""How a stage ended, in one line for the job script that started it (slurm/ends.sh).

`CODE finished`, `CODE stopped WHY` or `CODE failed WHY`, in the file that $EIM_OUTCOME_FILE names;
nothing where it is not set. Exit codes alone do not tell: srun and torchrun have their own.
"""

import contextlib
import os
import socket
from pathlib import Path

OUTCOME = "EIM_OUTCOME_FILE"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


def note_outcome(state: str, why: str = "", code: int = 0) -> None:
    """Writes the line, unless another process was first: what it saw is the cause.

    state: FINISHED, STOPPED or FAILED. code: what the process exits with.
    """
    place = os.environ.get(OUTCOME)
    if not place:
        return
    path = Path(place)
    own = path.with_name(f".{path.name}-{socket.gethostname()}-{os.getpid()}")
    line = " ".join(f"{code} {state} {why}".split())
    # A link, unlike a rename, fails where the file is there already. A disk that takes nothing must
    # not hide why the stage ended, which the log says too.
    with contextlib.suppress(OSError):
        try:
            own.write_text(line + "\n", encoding="utf-8")
            os.link(own, path)
        finally:
            own.unlink(missing_ok=True)
