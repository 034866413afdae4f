"""Which samples are shown: the worst, the best, some of each group, and never too many."""

import pytest

from pipeline.evaluation.samples import Sample, worst_first
from pipeline.evaluation.shown import groups_of, shown_of, told_of


def samples(**groups: tuple[int, float]) -> list[Sample]:
    """group: (how many, their score)."""
    return [
        Sample(f"{name}-{i}", "", (), {"Avg": score}, "", (name,))
        for name, (number, score) in groups.items()
        for i in range(number)
    ]


def test_the_best_and_each_group_are_among_those_that_are_shown() -> None:
    every = worst_first(samples(hard=(40, 0.0), odd=(10, 100.0), easy=(10, 200.0)))
    shown = shown_of(every, 20)
    scores = [each.score for each in shown]
    assert len(shown) == 20 and scores == sorted(scores, key=float)  # type: ignore[arg-type]
    assert scores[0] == 0.0 and scores.count(200.0) == 6
    assert groups_of(shown, every) == {"easy": "6 of 10", "hard": "13 of 40", "odd": "1 of 10"}
    assert told_of(shown, every) == (
        "20 of 60 samples are shown: the worst 13, the best 5, 2 between them for the groups; all "
        "are in samples.jsonl"
    )


def test_of_each_group_the_worst_and_the_best_are_shown() -> None:
    """Where there is room, so that both orders say something of a group."""
    every = [
        Sample(f"{group}-{i}", "", (), {"Avg": float(i)}, "", (group,))
        for group in "abcd"
        for i in range(100)
    ]
    for group in "abcd":
        found = [each.score for each in shown_of(every, 100) if group in each.groups]
        assert found[0] == 0.0 and found[-1] == 99.0


def test_as_many_groups_as_in_mme_are_all_shown_on_a_small_page() -> None:
    every = worst_first(samples(**{f"g{i}": (30, float(i)) for i in range(14)}))
    shown = shown_of(every, 20)
    assert len(groups_of(shown, every)) == 14 and shown[0] is every[0] and shown[-1] is every[-1]


@pytest.mark.parametrize("most", range(12))
def test_never_more_are_shown_than_asked_for(most: int) -> None:
    every = samples(**{f"g{i}": (3, float(i)) for i in range(14)})
    shown = shown_of(every, most)
    assert len(shown) == len({each.key for each in shown}) == most
    assert shown[:1] == worst_first(every)[: min(most, 1)]


def test_where_all_are_shown_nothing_is_told() -> None:
    every = samples(a=(3, 1.0), b=(2, 0.0))
    shown = shown_of(every, 5)
    assert shown == worst_first(every) and told_of(shown, worst_first(every)) == ""
    assert groups_of(shown, every) == {"a": "3", "b": "2"}
