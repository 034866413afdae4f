"""How far a phase is: counts and scores, no tensors.

Kept by the trainer, carried by checkpoints and exports, told in the summary.
"""

from dataclasses import dataclass, field


@dataclass
class Progress:
    """How far a phase is; what a checkpoint and an export carry beside tensors."""

    step: int = 0  # steps of the data plan done
    updates: int = 0  # optimizer updates of this segment; skipped steps do not count
    records_seen: int = 0
    records_by_set: dict[str, int] = field(default_factory=dict)  # of a mixture
    records_skipped: dict[str, int] = field(default_factory=dict)
    texts_cut: int = 0
    steps_skipped: int = 0
    io_retries: int = 0  # reads that were tried again, by all ranks
    shards_unstaged: int = 0  # by a process, since no copy could be made (data.stage)
    worker_restarts: int = 0  # loading processes that died, and were started again
    seconds: float = 0.0
    train_loss: float | None = None
    # of the steps since the last point of the curve: their number, the sums of every rank
    unshown: dict[str, list[float]] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)  # gone on with knowingly: step, what, how
    validation: dict[str, dict[str, float]] = field(default_factory=dict)  # start, end
    validated_at: int = 0  # the step of validation["end"]
    validation_due: bool = False  # the one of this step was broken off
    recent_losses: list[float] = field(default_factory=list)  # what a spike stands out from
