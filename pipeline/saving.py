"""How a checkpoint gets to the run's folder while training goes on.

All ranks write to staging together; that alone stands in training's way. A thread of each rank then
hashes its files and moves them in. When all threads are through, rank 0's marks the checkpoint
complete and removes what is outdated. Until then nothing has the name of a checkpoint, so an older
one stays the newest. One is under way at a time; what any rank meets, all ranks agree on.
"""

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint import write_checkpoint
from pipeline.checkpoint_files import (
    StoredFile,
    clear_unfinished,
    complete,
    move_in,
    path_of,
    remove_outdated,
    writing_path,
)
from pipeline.config import CheckpointsConfig
from pipeline.dist import agree_any, gather_json, on_main, wait_for_all
from pipeline.durable import existing
from pipeline.engine import Engine
from pipeline.identity import Identity
from pipeline.ownership import Ownership
from pipeline.progress import Progress
from pipeline.retention import Retention
from pipeline.staging import choose_place, fresh, staging_places

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Saved:
    """How the writing of one checkpoint ended, the same on every rank but for the seconds."""

    step: int
    path: Path
    bytes: int
    seconds: float  # from the first byte to the mark of completeness
    failure: str | None  # why it is not there


@dataclass
class _Pending:
    """A checkpoint under way: the work of this rank's thread, and what is known so far."""

    step: int
    staging: Path  # of this rank
    began: float
    work: Future[Any] | None = None
    bytes: int = 0
    moved: bool = False  # on all ranks; now rank 0 marks it complete


class Saver:
    """Writes checkpoints of one engine into one folder; every method is called by all ranks."""

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        identity: Identity,
        *,
        settings: CheckpointsConfig,
        retention: Retention,
        owner: Ownership,
    ) -> None:
        """folder: of the checkpoints, in what is the owner's.

        Clears what a killed run has left there and in staging. Raises as `begin`.
        """
        owner.check()
        self._folder, self._engine, self._identity = folder, engine, identity
        self.owner = owner
        self._retention, self._world = retention, engine.world
        self._places = staging_places(settings, folder)
        self._pending: _Pending | None = None
        if self._world.is_main:
            clear_unfinished(folder)
        if self._world.local_rank == 0:
            for place in self._places:
                shutil.rmtree(place, ignore_errors=True)
        wait_for_all(self._world)

    @property
    def busy(self) -> bool:
        """True while this rank's thread works; ranks differ, so agree before `advance`."""
        work = self._pending.work if self._pending else None
        return work is not None and not work.done()

    def begin(self, progress: Progress) -> Saved | None:
        """Writes a checkpoint to staging and leaves the rest to threads.

        Returns how it ended where it has already failed. None may be under way. Raises OwnerError
        on all ranks where another attempt has taken over.
        """
        assert self._pending is None, "one checkpoint at a time"
        self.owner.check()
        world, staging = self._world, self._staging()
        self._pending = _Pending(progress.step, staging, time.perf_counter())
        writing = self._writing(progress.step)
        # Folders first: DeepSpeed has to be entered by all ranks or by none.
        for work in (
            lambda: self._prepare(staging, writing),
            lambda: write_checkpoint(staging, self._engine, progress, self._identity),
        ):
            failures = gather_json(self._attempt(work, staging)[1], world)
            if any(failures):
                return self._end(failures)
        self._pending.work = _in_background(lambda: move_in(staging, writing, world.rank))
        return None

    def advance(self) -> Saved | None:
        """Takes the next step of a checkpoint under way; call when no rank is `busy`.

        Returns how it ended, or None while there is more to do, or nothing. Raises as `begin`.
        """
        pending = self._pending
        if pending is None:
            return None
        if pending.moved:
            _, failure = on_main(lambda: self._outcome(pending.work), self._world)
            return self._end([failure])
        moved, failure = self._outcome(pending.work)
        listed = {name: asdict(each) for name, each in (moved or {}).items()}
        found = gather_json([failure, listed], self._world)
        if any(failure for failure, _ in found):
            return self._end([failure for failure, _ in found])
        files = {name: StoredFile(**each) for _, part in found for name, each in part.items()}
        pending.bytes = sum(each.bytes for each in files.values())
        pending.moved, pending.work = True, None
        if self._world.is_main:
            pending.work = _in_background(lambda: self._complete(pending.step, files))
        return None

    def finish(self) -> Saved | None:
        """Waits for the checkpoint under way; returns how it ended, None where there is none."""
        ended = None
        while self._pending is not None:
            # In short rounds: a rank that waits in one long collective would look like a hang.
            if agree_any(self.busy, self._world):
                time.sleep(_POLL_SECONDS)
            else:
                ended = self.advance()
        return ended

    def _staging(self) -> Path:
        world = self._world
        share = self._engine.checkpoint_bytes * world.local_size / world.size
        return choose_place(self._places, self._folder, share) / f"rank-{world.rank:05d}"

    def _prepare(self, staging: Path, writing: Path) -> None:
        fresh(staging)
        if self._world.is_main:
            clear_unfinished(self._folder)
            writing.mkdir(parents=True)

    def _writing(self, step: int) -> Path:
        return writing_path(self._folder, step, self.owner.number)

    def _complete(self, step: int, files: dict[str, StoredFile]) -> None:
        # A newer attempt that comes between this look and the rename clears what we have written
        # before it chooses a checkpoint, and the rename fails.
        self.owner.guard()
        complete(self._writing(step), path_of(self._folder, step), files)
        self.owner.guard()
        remove_outdated(self._folder, step, self._retention)

    def _outcome(self, work: Future[Any] | None) -> tuple[Any, str | None]:
        """What this rank's thread returned, and why it could not do its work."""
        if work is None:
            return None, None
        return self._attempt(work.result, self._folder)

    def _attempt(self, work: Callable[[], Any], folder: Path) -> tuple[Any, str | None]:
        """What `work` returns, and why it could not write to `folder`: the reason and the room."""
        try:
            return work(), None
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            return None, (
                f"{error.strerror or error}{where} (rank {self._world.rank} on "
                f"{socket.gethostname()}, {_free(folder)} free at {folder}; a checkpoint takes "
                f"about {megabytes(self._engine.checkpoint_bytes)})"
            )

    def _end(self, failures: Sequence[str | None]) -> Saved:
        """Clears up, and says how it went."""
        pending, self._pending = self._pending, None
        assert pending is not None
        failure = next((each for each in failures if each), None)
        shutil.rmtree(pending.staging, ignore_errors=True)
        with contextlib.suppress(OSError):  # other ranks of this node may not be through
            pending.staging.parent.rmdir()
        if failure and self._world.is_main:
            clear_unfinished(self._folder)
        seconds = time.perf_counter() - pending.began
        path = path_of(self._folder, pending.step)
        return Saved(pending.step, path, pending.bytes, seconds, failure)


def megabytes(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e6:,.1f} MB"


def _free(folder: Path) -> str:
    return megabytes(shutil.disk_usage(existing(folder)).free)


def _in_background(work: Callable[[], Any]) -> Future[Any]:
    """Starts `work` in a thread that does not hold up the end of the process."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - raised again by who asks for the result
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future
