"""Filling a skeleton: the same values in any dtype and placement, ties, buffers, errors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from pipeline.errors import CheckpointError
from pipeline.models.placement import Placement, check_shapes, fill, reset_parameters
from pipeline.models.st import TransformerMapper


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Embedding(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.outer = nn.Linear(3, 4, bias=False)
        self.outer.weight = self.inner.weight
        self.register_buffer("table", torch.zeros(2), persistent=False)


class Watched(Placement):
    """Notes what is made writable; a rank that may not write when `rank` is not 0."""

    def __init__(self, rank: int = 0) -> None:
        self.rank, self.groups = rank, list[list[nn.Parameter]]()

    @contextmanager
    def writable(self, parameters: Sequence[nn.Parameter]) -> Iterator[bool]:
        self.groups.append(list(parameters))
        yield self.rank == 0


def test_values_come_by_name_and_ties_are_written_once() -> None:
    source, target, placement = Tied(), Tied(), Watched()
    nn.init.normal_(source.norm.running_mean)
    state = source.state_dict()
    del state["inner.weight"]  # only the alias is in the file
    fill(target, state.get, placement, seed=0, init=None)
    assert target.outer.weight is target.inner.weight
    assert all(map(torch.equal, target.state_dict().values(), source.state_dict().values()))
    written = [id(parameter) for group in placement.groups for parameter in group]
    assert len(written) == len(set(written)) == 3


def test_a_rank_that_may_not_write_reads_buffers_only() -> None:
    source, target = Tied(), Tied()
    nn.init.normal_(source.norm.running_mean)
    asked: list[str] = []

    def tensors(name: str) -> torch.Tensor | None:
        asked.append(name)
        return source.state_dict()[name]

    before = target.inner.weight.detach().clone()
    fill(target, tensors, Watched(rank=1), seed=0, init=None)
    assert torch.equal(target.inner.weight, before)
    assert torch.equal(target.norm.running_mean, source.norm.running_mean)
    assert asked == ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]


def mapper() -> TransformerMapper:
    return TransformerMapper(6, 2, 8, clip_length=2, num_layers=1, num_heads=2)


def test_initial_values_depend_on_seed_and_name_alone() -> None:
    states = []
    for model, seed in ((mapper(), 0), (mapper(), 0), (mapper().bfloat16(), 0), (mapper(), 1)):
        torch.rand(1)
        fill(model, lambda name: None, Placement(), seed=seed, init=reset_parameters)
        states.append(model.state_dict())
    assert all(map(torch.equal, states[0].values(), states[1].values()))
    assert all(torch.equal(states[0][k].bfloat16(), states[2][k]) for k in states[0])
    assert not torch.equal(states[0]["prefix_const"], states[3]["prefix_const"])
    assert not torch.equal(
        states[0]["layers.0.query.weight"], states[0]["layers.0.attn_out.weight"]
    )
    assert 0.5 < states[0]["prefix_const"].std() < 1.5


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    model = mapper()
    torch.manual_seed(0)
    fill(model, lambda name: None, Placement(), seed=5, init=reset_parameters)
    assert torch.equal(torch.rand(3), expected)


def test_missing_and_misshapen_tensors_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"inner\.weight: no such tensor"):
        fill(Tied(), lambda name: None, Placement(), seed=0, init=None)
    wrong = {**Tied().state_dict(), "inner.weight": torch.zeros(5, 3)}
    with pytest.raises(CheckpointError, match=r"inner\.weight: .* \(4, 3\), .* \(5, 3\)"):
        fill(Tied(), wrong.get, Placement(), seed=0, init=None)
    with pytest.raises(CheckpointError, match=r"outer\.weight: .* \(4, 3\), .* \(9,\)"):
        check_shapes(Tied(), {"outer.weight": (9,), "other": (1,)}, Placement())


def test_a_module_that_cannot_initialise_itself_is_our_bug() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

    with pytest.raises(TypeError, match="Bare"):
        fill(Bare(), lambda name: None, Placement(), seed=0, init=reset_parameters)
