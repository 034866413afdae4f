"""The watch: one thread per rank, from the start of a stage to its end.

It passes on wishes to stop, and ends the process when any rank has failed, is gone, or hangs: the
rank that knows the cause prints it, all leave with its exit code, and no collective is entered.
"""

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict
from typing import NoReturn

from pipeline.dist import World, gather_json
from pipeline.outcome import FAILED, note_outcome
from pipeline.watch.causes import (
    SIGNALLED,
    Cause,
    Place,
    cause_of,
    details_of,
)
from pipeline.watch.forks import at_fork
from pipeline.watch.launchers import Launchers
from pipeline.watch.rollcall import Pulse, RollCall, gone, pulse_from_json, silent
from pipeline.watch.signals import Signals, leave_signals_to_the_parent
from pipeline.watch.signs import Signs
from pipeline.watch.wire import Message, Wire

_TICK = 1.0
_LONGEST_TICK = 5.0  # what is longer was sleep: a suspended job must not accuse anybody
_MOST_KEYS = 256

# The rank that speaks comes first; the others leave after it, and say nothing.
_QUIET_SECONDS = 1.5
_VERDICT_SECONDS = 10.0
_PARTING_SECONDS = 3.0  # for the others to hear the last words


class Watch:
    """Watches over this process and, on rank 0, over all of them."""

    def __init__(self, world: World, timeout: float | None) -> None:
        """Every rank calls it, in its main thread.

        timeout: seconds of silence or standstill that end the run; None: failures alone do.
        """
        self._world, self._presence = world, world.presence
        self._timeout = float("inf") if timeout is None else timeout
        found = gather_json([socket.gethostname(), os.getpid()], world)
        self._hosts = [str(host) for host, _ in found]
        self._processes = [int(process) for _, process in found]
        self._wire = Wire(world)
        self._signals = Signals(self._wire.knocker, self._presence, str(self._place()))
        at_fork(self._let_go)
        self._launchers = Launchers(world.size)
        self._signs = Signs(self._presence, spins=world.device.type == "cuda")
        self._roll = RollCall(self._hosts, self._timeout) if world.is_main else None
        self._main_place = Place(0, self._hosts[0])  # as rank 0 told it last
        self._main_silent, self._main_left = 0.0, False
        self._failure: Cause | None = None
        self._details, self._told, self._closing = "", False, False
        self._presence.tell = lambda: self._wire.send({"place": asdict(self._place())})
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def fail(self, error: BaseException) -> NoReturn:
        """Ends the run for an exception of this rank, or for what caused it on another."""
        self._details = details_of(error)
        self._failure = cause_of(error, self._place())
        self._wire.knock()
        self._thread.join(_VERDICT_SECONDS)
        self._speak(self._failure)  # the watch itself is at its end
        leave(self._failure.code)

    def close(self) -> None:
        """After a run that ended well on this rank; the other ranks are on their own then."""
        self._closing = True
        self._presence.tell = lambda: None
        self._wire.knock()
        self._thread.join()
        self._signals.ignore()
        self._wire.part(1.0)
        self._wire.close()

    def _let_go(self) -> None:
        """In a forked process, which would keep the connection open after this one's end."""
        leave_signals_to_the_parent()
        self._wire.close()

    def _run(self) -> None:
        before = time.monotonic()
        while not self._closing:
            heard, knocks = self._wire.receive(before + _TICK - time.monotonic())
            for rank, message in heard:
                self._hear(rank, message)
            final = self._signals.read(knocks)
            if final is not None:
                self._abort(final)
            now = time.monotonic()
            if now - before >= _TICK or (self._failure is not None and not self._told):
                self._tick(min(now - before, _LONGEST_TICK))
                before = now
        self._wire.send({"left": True})
        faulthandler.cancel_dump_traceback_later()

    def _tick(self, seconds: float) -> None:
        if self._timeout < threading.TIMEOUT_MAX:
            # Runs in C: prints the stacks where a thread keeps Python's lock and we cannot run.
            faulthandler.dump_traceback_later(0.9 * self._timeout, file=sys.stderr)
        self._signs.look(seconds)
        if self._presence.asked is None:
            self._presence.asked = self._launchers.gone()
        place = self._place()
        pulse = Pulse(place, self._signs.still, self._presence.steady, self._signs.waits)
        message: Message = {"pulse": asdict(pulse), "asked": self._presence.asked}
        if self._failure is not None and not self._told:
            self._told = True
            message["failure"] = self._failure.as_json()
            if self._roll is not None:
                self._roll.failed(self._failure)
        self._wire.send(message)
        if self._roll is None:
            self._watch_main(seconds)
            return
        self._roll.heard(pulse)
        verdict = self._roll.passed(seconds)
        if verdict is not None:
            self._end(verdict)

    def _hear(self, rank: int, message: Message | None) -> None:
        """What came from a rank (None: its connection has ended)."""
        if self._roll is None:
            self._hear_main(message)
        elif message is None:
            self._roll.gone(rank)
        elif "left" in message:
            self._roll.left(rank)
        elif "aborted" in message:
            self._end(Cause.from_json(message["aborted"]))
        elif "place" in message:
            self._roll.moved(Place.from_json(message["place"]))
        else:
            self._roll.heard(pulse_from_json(message["pulse"]))
            if "failure" in message:
                self._roll.failed(Cause.from_json(message["failure"]))
            self._presence.asked = self._presence.asked or message["asked"]

    def _hear_main(self, message: Message | None) -> None:
        """What rank 0 says to the others."""
        self._main_silent = 0.0
        if message is None:
            if not self._main_left:
                self._end_without_main(gone(self._main_place))
        elif "verdict" in message:
            self._end(Cause.from_json(message["verdict"]))
        elif "left" in message:
            self._main_left = True
        elif "place" in message:
            self._main_place = Place.from_json(message["place"])
        else:
            self._main_place = pulse_from_json(message["pulse"]).place
            self._presence.asked = self._presence.asked or message["asked"]

    def _watch_main(self, seconds: float) -> None:
        """Rank 0 watches all ranks, all ranks watch rank 0."""
        self._main_silent += seconds
        if self._main_left:
            if self._failure is not None:
                self._end(self._failure)
        elif self._main_silent >= self._timeout:
            self._end_without_main(silent(self._main_place, self._main_silent))

    def _end_without_main(self, cause: Cause) -> None:
        """Rank 0 cannot judge; a failure of one's own that is no echo came first."""
        own = self._failure
        self._end(cause if own is None or own.echo else own)

    def _end(self, cause: Cause) -> NoReturn:
        """Ends this process for the cause that all have heard of, or found alike."""
        if self._roll is not None:
            self._wire.send({"verdict": cause.as_json()})
        self._kill(cause)
        if self._speaks_for(cause):
            self._speak(cause)
        else:
            time.sleep(_QUIET_SECONDS)
        if self._roll is not None:
            self._wire.part(_PARTING_SECONDS)
        leave(cause.code)

    def _speaks_for(self, cause: Cause) -> bool:
        """The rank itself where it can; else rank 0, and for rank 0 the first on every node."""
        rank = cause.place.rank
        if cause.speaks:
            return rank == self._world.rank
        if rank != 0:
            return self._world.is_main
        return self._world.rank == 1 or self._world.local_rank == 0

    def _speak(self, cause: Cause) -> None:
        if cause.still:
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        elif cause.place.rank == self._world.rank:
            sys.stderr.write(self._details)
        sys.stderr.write(cause.line() + "\n")
        sys.stderr.flush()
        note_outcome(FAILED, cause.line().removeprefix("error: "), cause.code)

    def _kill(self, cause: Cause) -> None:
        """Ends a frozen rank of this node: a stopped process keeps its GPU for good."""
        rank = cause.place.rank
        if cause.frozen and self._hosts[rank] == self._hosts[self._world.rank]:
            with contextlib.suppress(OSError):
                os.kill(self._processes[rank], signal.SIGKILL)

    def _abort(self, final: signal.Signals) -> NoReturn:
        """Ends the process at once; the others follow."""
        what = f"aborted by a second signal ({final.name}); the last checkpoint stays good"
        cause = Cause(self._place(), what, SIGNALLED + final, speaks=self._world.is_main)
        self._wire.send({"verdict" if self._world.is_main else "aborted": cause.as_json()})
        if self._world.is_main:
            self._speak(cause)
        self._wire.part(1.0)
        leave(cause.code)

    def _place(self) -> Place:
        keys = self._presence.keys[:_MOST_KEYS]
        return Place(self._world.rank, self._hosts[self._world.rank], self._presence.step, keys)


def leave(code: int) -> NoReturn:
    """Ends the process without Python's own way out, which waits for threads and communication."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
