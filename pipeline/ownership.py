"""Who may write into a folder: one attempt at a time, and never an older one again.

A claim is a file `.owner/<number>.json` that only one process can make; the highest number owns the
folder. Whoever takes over makes the next number and removes the last one, so that an attempt that
was cut off meanwhile (a ghost: its node lost the network and came back) no longer finds its own,
and leaves. An owner touches its file, which is its heartbeat, and renames it when it is through.

Assumes a file system that all nodes share, and no locks: files are linked, renamed and opened.
Times are the file system's; where it takes them from the nodes (Lustre), their clocks differ by
less than `STALE_SECONDS`.
"""

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.attempts import Attempt
from pipeline.dist import World, on_main
from pipeline.errors import OwnerError

log = logging.getLogger("pipeline")

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
_LOOK_SECONDS = 0.5
_FOLDER, _HELD, _RELEASED = ".owner", ".json", ".released"


@dataclass(frozen=True)
class _Mark:
    """The file of a claim. What reads it raises FileNotFoundError once it is taken over."""

    path: Path

    @property
    def number(self) -> int:
        return int(self.path.stem)

    @property
    def released(self) -> bool:
        return self.path.suffix == _RELEASED

    def owner(self) -> Attempt:
        try:
            return Attempt(**json.loads(self.path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise OwnerError(
                f"{self.path} does not name an owner; delete it if nothing writes into "
                f"{self.path.parents[1]}"
            ) from error

    def touched(self) -> int:
        """The time of the last heartbeat, in ns."""
        with self.path.open("rb") as file:  # open, as NFS answers from its memory otherwise
            return os.fstat(file.fileno()).st_mtime_ns


class Claim:
    """What one process does to own a folder; of a run's processes, rank 0 alone."""

    def __init__(self, folder: Path, attempt: Attempt, *, stale: float = STALE_SECONDS) -> None:
        """stale: seconds without a heartbeat after which an owner is taken over."""
        self.folder, self._marks = folder, folder / _FOLDER
        self._attempt, self._stale = attempt, stale
        self._draft = self._marks / f".{attempt.host}-{attempt.pid}"
        self._mine: _Mark | None = None

    def take(self, waiting: Callable[[], None] = lambda: None) -> int:
        """Makes this attempt the owner; returns the claim's number, larger than any before it.

        An owner is taken over whose process is gone, who was not heard of for `stale` seconds, or
        who is an older attempt of this Slurm job. Of another one a heartbeat is waited for.

        waiting: called now and then meanwhile.

        Raises OwnerError where another attempt lives, a newer one of this job was there, or the
        folder cannot be written to.
        """
        try:
            self._marks.mkdir(parents=True, exist_ok=True)
            seen: tuple[_Mark, int] | None = None
            while self._mine is None:
                self._draft.write_text(json.dumps(asdict(self._attempt)))
                with contextlib.suppress(FileNotFoundError):  # taken over while we looked
                    last = self._last()
                    if last is None or self._may_follow(last, seen):
                        self._make(0 if last is None else last.number + 1)
                        continue
                    if seen is None:
                        log.info("%s: is waited for, it may live: %s", self.folder, last.owner())
                    seen = seen or (last, last.touched())
                waiting()
                time.sleep(_LOOK_SECONDS)
            self._draft.unlink()
            return self._mine.number
        except OSError as error:
            raise OwnerError(
                f"{self._marks} cannot be written ({error.strerror or error}); mend the rights, or "
                "name another folder with runs="
            ) from error

    def check(self) -> None:
        """Raises OwnerError where this attempt is the owner no more."""
        assert self._mine is not None, "taken before"
        with contextlib.suppress(FileNotFoundError):
            self._mine.touched()
            if self._last() == self._mine:
                return
        now = "nobody"
        with contextlib.suppress(OSError):
            last = self._last()
            now = now if last is None else str(last.owner())
        raise OwnerError(
            f"{self.folder} was taken over by {now}; this attempt, {self._attempt}, writes nothing "
            "more into it"
        )

    def beat(self) -> None:
        """The heartbeat; raises FileNotFoundError once another attempt has taken over."""
        assert self._mine is not None, "taken before"
        os.utime(self._mine.path)

    def release(self) -> None:
        """Lets others in at once. An older attempt of this job stays out for good."""
        assert self._mine is not None, "taken before"
        with contextlib.suppress(OSError):
            self._mine.path.rename(self._mine.path.with_suffix(_RELEASED))

    def _last(self) -> _Mark | None:
        """The one that counts: a number that was released was never taken again."""
        return max(self._all(), key=lambda each: (each.number, each.released), default=None)

    def _all(self) -> list[_Mark]:
        found = (each for each in self._marks.iterdir() if each.suffix in (_HELD, _RELEASED))
        return [_Mark(each) for each in found if each.stem.isdigit()]

    def _may_follow(self, last: _Mark, seen: tuple[_Mark, int] | None) -> bool:
        """True where the last owner is none any more, False where that is not known yet.

        seen: its mark with its heartbeat when it was first looked at. Raises OwnerError where it
        lives, or is a newer attempt of this job.
        """
        owner, silent = last.owner(), (self._draft.stat().st_mtime_ns - last.touched()) / 1e9
        if owner.follows(self._attempt):
            raise OwnerError(
                f"{self.folder} belongs to a newer attempt of this job: {owner}; this one, "
                f"{self._attempt}, writes nothing into it (if that is another cluster's job, "
                f"delete {self._marks})"
            )
        if last.released or owner == self._attempt or self._attempt.follows(owner):
            return True
        runs = owner.runs()
        if runs is False or silent > self._stale:
            return True
        if runs or (seen is not None and seen[0] == last and seen[1] != last.touched()):
            raise OwnerError(
                f"{self.folder} is being written by {owner}, last heard of {max(silent, 0):.0f} s "
                "ago; give another name=, or stop that one"
            )
        return False

    def _make(self, number: int) -> None:
        """Becomes the owner, unless somebody was faster."""
        mine = _Mark(self._marks / f"{number:06d}{_HELD}")
        with contextlib.suppress(FileExistsError):
            os.link(self._draft, mine.path)
            if self._last() != mine:  # so slow that this number has come and gone
                mine.path.unlink()
                return
            self._mine = mine
            for each in self._all():
                if each.number < number:
                    each.path.unlink(missing_ok=True)


class Ownership:
    """The right of all ranks of a run to write into a folder. Without a claim it is a given."""

    def __init__(self, world: World, claim: Claim | None = None, number: int = 0) -> None:
        """claim: rank 0's. number: of the claim, the same on all ranks; 0 without one."""
        self._world, self._claim, self.number = world, claim, number
        self.lost = False  # known to rank 0's heartbeat; `check` tells the others

    def check(self) -> None:
        """Raises OwnerError on all ranks where another attempt has taken over; all call it."""
        on_main(self.guard, self._world)

    def guard(self) -> None:
        """The same for rank 0 alone, also in its threads: right before something appears."""
        if self._claim is not None:
            self._claim.check()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """With a heartbeat inside, and released at the end."""
        claim, done = self._claim, threading.Event()
        if claim is None:
            yield
            return

        def beat() -> None:
            while not done.wait(BEAT_SECONDS):
                try:
                    claim.beat()
                except FileNotFoundError:
                    self.lost = True
                    return
                except OSError:
                    continue  # a file system that fails for a while makes nobody a ghost

        thread = threading.Thread(target=beat, name="owner", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            claim.release()


@contextmanager
def owning(folder: Path, world: World) -> Iterator[Ownership]:
    """Owns a folder inside, for all ranks; every rank calls it.

    Raises OwnerError on all of them where it is somebody else's (see `Claim.take`).
    """
    claim = Claim(folder, Attempt.of(os.environ)) if world.is_main else None
    number = on_main(lambda: claim.take(world.presence.beat) if claim else 0, world)
    ownership = Ownership(world, claim, number)
    with ownership.beating():
        yield ownership
