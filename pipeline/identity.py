"""What a result depends on, in plain words: a recipe's values that matter, data and weights.

Two identities are compared by their fingerprints, and told apart by their values. Pure: which
values there are is decided in `provenance.py`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.hashes import fingerprint_of

_MOST_TOLD = 6


@dataclass(frozen=True)
class Identity:
    """What one phase depends on, and what it started from.

    values: by the recipe's keys, JSON-able; contents of files are told by their hashes. Unknown
    values (None) belong to an export that says no more than its fingerprint.
    """

    values: Mapping[str, Any] | None
    before: "Identity | None" = None
    given: str | None = field(default=None, compare=False)  # fingerprint of unknown values

    @property
    def fingerprint(self) -> str:
        """A short hash of all of it."""
        if self.values is None:
            return self.given or ""
        return fingerprint_of(self.values, self.before.fingerprint if self.before else None)

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint's or an export's JSON."""
        before = None if self.before is None else self.before.as_json()
        return {"fingerprint": self.fingerprint, "values": self.values, "before": before}

    @classmethod
    def of_json(cls, written: Mapping[str, Any]) -> "Identity":
        """What `as_json` has written; a bare fingerprint is an identity of unknown values."""
        before, values = written.get("before"), written.get("values")
        if values is None:
            return cls(None, given=written["fingerprint"])
        return cls(values, None if before is None else cls.of_json(before))


def differences(then: Identity, now: Identity) -> list[str]:
    """One phrase for each value that is another, "key: ... then, ... now"; empty for none.

    What both phases and those before them have in common is told once.
    """
    if then.fingerprint == now.fingerprint:
        return []
    found = _differences(then, now, "the recipe (its values are not known)")
    return list(dict.fromkeys(found)) or ["the way recipes are compared"]


def told(different: Sequence[str]) -> str:
    """Up to six differences in one line."""
    more = len(different) - _MOST_TOLD
    return "; ".join(different[:_MOST_TOLD]) + (f"; and {more} more" if more > 0 else "")


def _differences(then: Identity | None, now: Identity | None, whole: str) -> Iterator[str]:
    """whole: how both are called together where their values are not known."""
    if then is None or now is None:
        if then is not now:
            yield f"it starts from: {_origin(then)} then, {_origin(now)} now"
        return
    if then.fingerprint == now.fingerprint:
        return
    if then.values is None or now.values is None:
        yield f"{whole}: {then.fingerprint} then, {now.fingerprint} now"
        return
    for key in sorted(then.values.keys() | now.values.keys()):
        old, new = then.values.get(key), now.values.get(key)
        if json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):
            yield f"{key}: {_value(old)} then, {_value(new)} now"
    yield from _differences(then.before, now.before, "the export it starts from")


def _origin(identity: Identity | None) -> str:
    return "the base weights" if identity is None else f"export {identity.fingerprint}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)
