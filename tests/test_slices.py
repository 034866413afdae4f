"""Slices of one number of ranks, cut again for another: every element stays what it was."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.slices import Flat, Slices, cut_again

SIZES = [{"a": 7, "b": 1}, {"c": 12, "d": 5, "e": 3}, {"f": 1}]
WHOLE = {
    name: torch.arange(size) + 100.0 * number
    for number, (name, size) in enumerate((n, s) for group in SIZES for n, s in group.items())
}


def layout(ranks: int, *, by_parameter: bool, groups: list[dict[str, int]] = SIZES) -> Slices:
    """As DeepSpeed lays them out; by group each slice is a multiple of two elements."""
    flats = []
    for sizes in groups:
        if by_parameter:
            length = sum(math.ceil(size / ranks) for size in sizes.values())
        else:
            length = 2 * math.ceil(sum(sizes.values()) / (2 * ranks))
        flats.append(Flat(sizes, length))
    return Slices(flats, ranks, by_parameter=by_parameter)


def written(slices: Slices) -> dict[int, list[Tensor]]:
    """What ranks hold, put together element by element; padding is -1."""
    found: dict[int, list[Tensor]] = {}
    for number, flat in enumerate(slices.flats):
        found[number] = []
        for rank in range(slices.ranks):
            held = [
                WHOLE[name][i] if i < len(WHOLE[name]) else torch.tensor(-1.0)
                for name, first, end in slices.of_rank(rank, flat)
                for i in range(first, end)
            ]
            padding = [torch.tensor(-1.0)] * (flat.length - len(held))
            found[number].append(torch.stack([*held, *padding]))
    return found


@pytest.mark.parametrize("by_parameter", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 40])
def test_every_element_lies_on_one_rank(ranks: int, by_parameter: bool) -> None:
    slices = layout(ranks, by_parameter=by_parameter)
    held = [
        (name, i)
        for rank in range(ranks)
        for flat in slices.flats
        for name, first, end in slices.of_rank(rank, flat)
        for i in range(first, end)
        if i < len(WHOLE[name])
    ]
    assert sorted(held) == sorted(
        (name, i) for name, each in WHOLE.items() for i in range(len(each))
    )


@pytest.mark.parametrize("by_parameter", [True, False])
@pytest.mark.parametrize("after", [1, 2, 3, 4, 7, 40])
@pytest.mark.parametrize("before", [1, 2, 3, 4, 7, 40])
def test_cut_again_is_what_the_other_ranks_would_have_written(
    before: int, after: int, by_parameter: bool
) -> None:
    old, new = (layout(ranks, by_parameter=by_parameter) for ranks in (before, after))
    slices, expected = written(old), written(new)
    for number, flat in enumerate(new.flats):
        for rank in range(after):
            made = cut_again(slices, old.places(), new, rank, flat)
            assert torch.equal(made, expected[number][rank].clamp(min=0))


def test_flat_tensors_may_be_grouped_and_ordered_otherwise() -> None:
    """Sub-groups of ZeRO-3 and round-robin order of ZeRO-2 depend on the number of ranks."""
    other = [{"a": 7}, {"b": 1}, {"e": 3, "c": 12}, {"d": 5}, {"f": 1}]
    for by_parameter in (True, False):
        old = layout(2, by_parameter=by_parameter)
        new = layout(3, by_parameter=by_parameter, groups=other)
        slices, expected = written(old), written(new)
        for number, flat in enumerate(new.flats):
            made = [cut_again(slices, old.places(), new, rank, flat) for rank in range(3)]
            assert all(
                torch.equal(m, e.clamp(min=0)) for m, e in zip(made, expected[number], strict=True)
            )
