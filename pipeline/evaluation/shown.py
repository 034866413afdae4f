"""Which samples a page shows when it cannot show all: bad ones, good ones, some of each group.

Pure functions of samples; knows no page.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import takewhile

from pipeline.evaluation.samples import Sample, worst_first


def shown_of(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most `most` samples, worst first.

    A quarter are the best ones; another quarter is shared by the groups, for their worst and best
    (at least one for each group, while there is room); the others are the worst of all.
    """
    ordered = worst_first(samples)
    if len(ordered) <= most:
        return ordered
    share = most // 4
    chosen = set(range(len(ordered) - share, len(ordered)))
    chosen.update(_of_groups(ordered, share)[: most - share])
    for number in range(len(ordered)):
        if len(chosen) >= most:
            break
        chosen.add(number)
    return [ordered[number] for number in sorted(chosen)]


def _of_groups(ordered: Sequence[Sample], share: int) -> list[int]:
    """Places in `ordered`: the worst of each group, then the best of each, the next worst, ..."""
    members: dict[str, list[int]] = {}
    for number, each in enumerate(ordered):
        for group in each.groups:
            members.setdefault(group, []).append(number)
    rounds = max(share // max(len(members), 1), 1)
    ends = (r // 2 if r % 2 == 0 else -1 - r // 2 for r in range(rounds))
    return [of[end] for end in ends for of in members.values() if -len(of) <= end < len(of)]


def told_of(shown: Sequence[Sample], samples: Sequence[Sample]) -> str:
    """What a reader should know of the choice; nothing where all are shown. Both worst first."""
    if len(shown) == len(samples):
        return ""
    worst = _alike(shown, samples)
    best = _alike(shown[::-1], samples[::-1])
    parts = [f"the worst {worst:,}", f"the best {best:,}" if best else ""]
    if between := len(shown) - worst - best:
        parts.append(f"{between:,} between them for the groups")
    named = ", ".join(filter(None, parts)) if shown else "none"
    return (
        f"{len(shown):,} of {len(samples):,} samples are shown: {named}; all are in samples.jsonl"
    )


def _alike(one: Sequence[Sample], other: Sequence[Sample]) -> int:
    """How many of the first samples are the same."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda each: each[0] is each[1], pairs))


def groups_of(shown: Sequence[Sample], samples: Sequence[Sample]) -> dict[str, str]:
    """Group -> how many are shown, '8' or '8 of 40'; of all groups that are shown, by name."""
    every, there = (Counter(g for each in of for g in each.groups) for of in (samples, shown))
    return {
        name: f"{n:,}" if n == every[name] else f"{n:,} of {every[name]:,}"
        for name, n in sorted(there.items())
    }
