"""Which elements of which parameter a rank's slice of the optimizer holds, under ZeRO.

Two layouts. By parameter (stage 3): each parameter is cut into as many equal slices as there are
ranks, and a rank's flat tensor is its slices one after the other. By group (stages 1 and 2): the
parameters of a group lie end to end, and that is cut. What is left over at an end is padding.
Arithmetic alone: knows no files and no DeepSpeed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Flat:
    """One flat tensor of the optimizer: its parameters in order, and how much a rank holds."""

    sizes: Mapping[str, int]  # elements of each parameter
    length: int  # of each rank's slice, padding included


@dataclass(frozen=True)
class Slices:
    """How flat tensors are cut among `ranks`."""

    flats: Sequence[Flat]
    ranks: int
    by_parameter: bool

    def of_rank(self, rank: int, flat: Flat) -> Iterator[tuple[str, int, int]]:
        """(parameter, first element, end) of all that the rank's slice of `flat` holds, in order.

        By parameter every parameter comes, and the end may lie behind its last element: padding.
        """
        position = 0  # of the parameter in the group
        for name, size in flat.sizes.items():
            if self.by_parameter:
                share = math.ceil(size / self.ranks)
                yield name, rank * share, (rank + 1) * share
            else:
                first = max(rank * flat.length, position)
                end = min((rank + 1) * flat.length, position + size)
                if first < end:
                    yield name, first - position, end - position
            position += size

    def places(self) -> dict[str, "Place"]:
        """Where each parameter lies."""
        found = {}
        for number, flat in enumerate(self.flats):
            position = 0
            for name, size in flat.sizes.items():
                share = math.ceil(size / self.ranks)
                if self.by_parameter:
                    found[name] = Place(number, size, unit=share, skipped=position, base=0)
                    position += share
                else:
                    found[name] = Place(number, size, unit=flat.length, skipped=0, base=position)
                    position += size
        return found


@dataclass(frozen=True)
class Place:
    """Where the elements of one parameter lie among the ranks' slices of its flat tensor."""

    flat: int  # number of the flat tensor
    size: int  # elements
    unit: int  # of them in a row on one rank
    skipped: int  # elements before them in every rank's slice
    base: int  # elements of other parameters before them in the row

    def read(self, slices: Sequence[Tensor], first: int, end: int) -> list[Tensor]:
        """The elements from `first` to `end` of the parameter, in pieces; none behind its last.

        slices: of every rank, (length,) each.
        """
        pieces = []
        at, stop = self.base + first, self.base + min(end, self.size)
        while at < stop:
            rank, inner = divmod(at, self.unit)
            count = min(self.unit - inner, stop - at)
            pieces.append(slices[rank].narrow(0, self.skipped + inner, count))
            at += count
        return pieces


def cut_again(
    slices: Mapping[int, Sequence[Tensor]],
    places: Mapping[str, Place],
    into: Slices,
    rank: int,
    flat: Flat,
) -> Tensor:
    """One flat tensor's slice (length,) of one of `into`'s ranks, out of those of other ranks.

    slices: by flat tensor, of every rank, as they were cut. places: of the parameters in them.
    Padding is zero.
    """
    made = torch.zeros(flat.length, dtype=next(iter(slices.values()))[0].dtype)
    position = 0
    for name, first, end in into.of_rank(rank, flat):
        place, at = places[name], position
        for piece in place.read(slices[place.flat], first, end):
            made[at : at + len(piece)] = piece
            at += len(piece)
        position += end - first
    return made
