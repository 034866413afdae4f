"""Texts that end an answer: what of it comes before them, while it grows and in the end.

The answer is the one up to the stop that is complete first, however much has grown beyond it until
somebody looks. So streams and whole answers agree. Pure.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Said(NamedTuple):
    """text: what can be shown, which only grows; stopped: a stop has ended it."""

    text: str
    stopped: bool


def before_stops(text: str, stops: Sequence[str], *, whole: bool) -> Said:
    """What of an answer comes before the first of `stops`, which are not empty.

    Args:
        text: the answer so far.
        stops: the texts that end it.
        whole: it grows no more. Else an end that may be the beginning of a stop is held back.
    """
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    if found:
        _, at = min(found)
        return Said(text[:at], stopped=True)
    held = 0 if whole else max((_begun(text, stop) for stop in stops), default=0)
    return Said(text[: len(text) - held], stopped=False)


def _begun(text: str, stop: str) -> int:
    """How many characters of `stop`, but not all, the text ends with."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
