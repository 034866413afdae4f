"""A phase's `summary.json`: how it stands, what it has seen and skipped, why it stopped."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.callbacks.settle import exported
from pipeline.config import PhaseConfig
from pipeline.dist import World
from pipeline.durable import remembered, write_json
from pipeline.export_files import read_export
from pipeline.ownership import Ownership
from pipeline.progress import Progress
from pipeline.stopping import Stopped

log = logging.getLogger("pipeline")

SUMMARY = "summary.json"


def summarise(
    folder: Path,
    phase: PhaseConfig,
    progress: Progress,
    stopped: str | None,
    ran: Mapping[str, int | str],
    world: World,
) -> None:
    """Writes the summary on rank 0 and says it in one line.

    stopped: why; None where the phase is finished. ran: `SegmentRun.ran`.
    """
    if not world.is_main:
        return
    name = folder.name
    summary = {
        "state": "stopped" if stopped else "finished",
        "reason": stopped,
        "phase": name,
        "steps": progress.step,
        "steps_skipped": progress.steps_skipped,
        "records_seen": progress.records_seen,
        "records_by_set": progress.records_by_set,
        "records_skipped": progress.records_skipped,
        "texts_cut": progress.texts_cut,
        "io_retries": progress.io_retries,
        "shards_unstaged": progress.shards_unstaged,
        "worker_restarts": progress.worker_restarts,
        "seconds": round(progress.seconds, 2),
        "train_loss_end": progress.train_loss,
        "validation": progress.validation,
        "changes": progress.changes,
        "exported": None if stopped else exported(phase),
        **ran,
    }
    write_json(folder / SUMMARY, summary)
    skipped = sum(progress.records_skipped.values())
    log.info(
        "%-13s %s at step %d: %d records seen, %d skipped %s in %.0f s; %s; TensorBoard: %s",
        name,
        f"stopped ({stopped})" if stopped else "finished",
        progress.step,
        progress.records_seen,
        skipped,
        progress.records_skipped or "",
        progress.seconds,
        folder / SUMMARY,
        folder / "tensorboard",
    )


def complete_summary(folder: Path, phase: PhaseConfig, world: World) -> None:
    """Writes the summary of a finished phase that was killed between its export and that."""
    path = folder / SUMMARY
    if not world.is_main or remembered(path).get("state") == "finished":
        return
    found = read_export(folder / "export")
    assert found is not None
    summarise(folder, phase, Progress(**found["progress"]), None, found["ran"], world)


@contextlib.contextmanager
def noting_a_stop(
    folder: Path, name: str, progress: Progress, owner: Ownership, world: World
) -> Iterator[None]:
    """A stop while a segment is built leaves its reason in the summary; what else is there stays.

    progress: of the phase, where no earlier start has left a summary.
    """
    try:
        yield
    except Stopped as asked:
        owner.check()
        if world.is_main:
            path = folder / SUMMARY
            summary = remembered(path) or {"phase": name, "steps": progress.step}
            write_json(path, {**summary, "state": "stopped", "reason": str(asked)})
        raise
