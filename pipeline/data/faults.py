"""Records that cannot be used: why, which, and how they are counted and shown.

A fault belongs to one record and its content; it is skipped and counted, never fatal by itself.
What concerns files and machines is a `DataError` instead.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.data.files import atomic_file

_SHOWN = 3  # keys named for each reason


class ContentFault(Exception):  # noqa: N818 - a fault is skipped and counted, not an error
    """One record cannot be used; its reader skips and counts it by `reason`.

    Attributes: reason: one of few fixed phrases; shard, key: where, empty when not known yet;
    detail: what exactly was wrong.
    """

    def __init__(self, reason: str, shard: str = "", key: str = "", detail: str = "") -> None:
        # All four go to Exception, so that a worker process can pickle the fault.
        super().__init__(reason, shard, key, detail)
        self.reason = reason
        self.shard = shard
        self.key = key
        self.detail = detail

    def __str__(self) -> str:
        where = "/".join(part for part in (self.shard, self.key) if part)
        detail = f" ({self.detail})" if self.detail else ""
        return f"{where}: {self.reason}{detail}" if where else f"{self.reason}{detail}"


def tally(faults: Iterable[ContentFault]) -> Counter[str]:
    """Return how many faults there are of each reason."""
    return Counter(fault.reason for fault in faults)


def describe(faults: Sequence[ContentFault]) -> str:
    """Return the counts by reason in one line, each with the first keys: `2 no captions (a, b)`."""
    parts = []
    for reason, count in sorted(tally(faults).items()):
        keys = [fault.key for fault in faults if fault.reason == reason][:_SHOWN]
        more = ", ..." if count > len(keys) else ""
        parts.append(f"{count} {reason} ({', '.join(keys)}{more})")
    return ", ".join(parts) or "none"


def to_note(faults: Iterable[ContentFault]) -> str:
    """Return the faults as one JSON text, which `from_note` reads."""
    return json.dumps([list(fault.args) for fault in faults])


def from_note(note: str) -> list[ContentFault]:
    """Return the faults that `to_note` wrote."""
    return [ContentFault(*args) for args in json.loads(note)]


def write_faults(path: Path, faults: Iterable[ContentFault]) -> None:
    """Write one JSON object a line: reason, shard, key and detail of every fault."""
    with atomic_file(path) as file:
        for fault in faults:
            row = {name: getattr(fault, name) for name in ("reason", "shard", "key", "detail")}
            line = json.dumps(row, ensure_ascii=False) + "\n"
            file.write(line.encode(errors="backslashreplace"))
