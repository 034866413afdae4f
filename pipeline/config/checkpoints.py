"""Where checkpoints are written on their way, and how often that may fail."""

from dataclasses import dataclass

from pipeline.config.fields import path, positive


@dataclass
class CheckpointsConfig:
    """What is of the machine; how many are kept is a phase's own (`keep_checkpoints`, ...)."""

    # A folder on each node's own disk that training writes to before a thread moves the files to
    # the run. null: $TMPDIR where that is another disk with room enough, else the run's own folder.
    staging: str | None = path(None)
    attempts: int = positive(3)  # checkpoints in a row that cannot be written before the run ends
