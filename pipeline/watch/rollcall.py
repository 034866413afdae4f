"""What rank 0 knows of all ranks, and when it is enough to end the run. No sockets, no clock.

Three findings: a rank has failed or is gone; a rank is not heard of; no rank makes progress, which
the one that does not wait for the others began. A rank alone may be still for as long as it likes
while another works: rank 0 scores or prepares while the others wait in a collective.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.watch.causes import BUG, Cause, Place, first_cause

# After a failure, for the others to report theirs: the first to arrive may be an echo.
_SETTLE_SECONDS = 1.0

# Building, compiling, the first step, exporting: one unit of work may take this many timeouts.
_UNSTEADY = 10.0


@dataclass(frozen=True)
class Pulse:
    """What a rank tells once a second."""

    place: Place
    still: float = 0.0  # seconds since its training thread was last seen moving
    steady: bool = False  # past its first step
    waits: bool = False  # for the others, in a collective


@dataclass
class _Member:
    pulse: Pulse
    silent: float = 0.0  # seconds since the last pulse
    left: bool = False  # its work ended well
    reported: bool = False  # its failure, or its connection's end


class RollCall:
    """Rank 0's book of all ranks."""

    def __init__(self, hosts: Sequence[str], timeout: float) -> None:
        """hosts: of each rank. timeout: seconds of silence or standstill that end the run."""
        places = [Place(rank, host) for rank, host in enumerate(hosts)]
        self._members = [_Member(Pulse(each)) for each in places]
        self._timeout = timeout
        self._causes: list[Cause] = []
        self._settling = 0.0

    def heard(self, pulse: Pulse) -> None:
        """A rank's pulse."""
        member = self._members[pulse.place.rank]
        member.pulse, member.silent = pulse, 0.0

    def moved(self, place: Place) -> None:
        """A rank has begun something else."""
        member = self._members[place.rank]
        member.pulse, member.silent = replace(member.pulse, place=place), 0.0

    def left(self, rank: int) -> None:
        """A rank's work ended well; whatever becomes of it now concerns nobody."""
        self._members[rank].left = True

    def failed(self, cause: Cause) -> None:
        """A rank's own failure."""
        self._members[cause.place.rank].reported = True
        self._causes.append(cause)

    def gone(self, rank: int) -> None:
        """A rank's connection ended."""
        member = self._members[rank]
        if not member.left and not member.reported:
            self.failed(gone(member.pulse.place))

    def passed(self, seconds: float) -> Cause | None:
        """So much time went by; returns what ends the run, if anything does."""
        present = [each for each in self._members if not each.left]
        for each in present:
            each.silent += seconds
        if not self._causes:
            found = self._silence(present) or self._standstill(present)
            return found
        self._settling += seconds
        if self._settling >= _SETTLE_SECONDS or all(each.reported for each in present):
            return first_cause(self._causes)
        return None

    def _silence(self, present: Sequence[_Member]) -> Cause | None:
        for each in present:
            if each.silent >= self._timeout:
                return silent(each.pulse.place, each.silent)
        return None

    def _standstill(self, present: Sequence[_Member]) -> Cause | None:
        pulses = [each.pulse for each in present]
        steady = all(each.steady for each in pulses)
        limit = self._timeout * (1.0 if steady else _UNSTEADY)
        if not pulses or any(each.still < limit for each in pulses):
            return None
        first = max(pulses, key=lambda each: (not each.waits, each.still))
        what = f"no progress for {first.still:.0f} s while the others waited; its stacks are above"
        return Cause(first.place, what, BUG, still=True)


def gone(place: Place) -> Cause:
    """The cause that a rank is whose process ended without a word."""
    what = "is gone: killed (by the system where memory ran out), crashed, or its node failed"
    return Cause(place, what, BUG, speaks=False)


def silent(place: Place, seconds: float) -> Cause:
    """The cause that a rank is of which nothing is heard."""
    what = f"no sign of life for {seconds:.0f} s: stopped (SIGSTOP), or its node is out of reach"
    return Cause(place, what, BUG, speaks=False, frozen=True)


def pulse_from_json(value: dict[str, Any]) -> Pulse:
    """The reverse of `dataclasses.asdict`."""
    return Pulse(**{**value, "place": Place.from_json(value["place"])})
