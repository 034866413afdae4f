"""Averages of weights against ones written out by hand; the blend's two ends."""

import copy

import pytest
import torch
from torch import nn

from pipeline.averages import Interpolation, MovingAverage, as_trained


def optimizer_of(*sizes: int) -> tuple[torch.optim.AdamW, list[nn.Parameter]]:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(size)) for size in sizes]
    return torch.optim.AdamW([{"params": [each]} for each in weights], lr=0.1), weights


def step(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for each in weights:
        each.grad = torch.randn(each.shape, generator=generator)
    optimizer.step()
    optimizer.zero_grad()


def test_the_average_starts_before_the_first_step_and_decays() -> None:
    optimizer, weights = optimizer_of(3, 2)
    average = MovingAverage(optimizer, 0.9)
    expected = [each.detach().clone() for each in weights]
    for number in range(5):
        step(optimizer, weights, number)
        expected = [0.9 * a + 0.1 * b.detach() for a, b in zip(expected, weights, strict=True)]
    average.put_in_place()
    for found, each in zip(weights, expected, strict=True):
        torch.testing.assert_close(found.detach(), each)


def test_training_does_not_notice_that_it_is_averaged() -> None:
    results = []
    for decay in (0.0, 0.9):
        optimizer, weights = optimizer_of(4)
        if decay:
            MovingAverage(optimizer, decay)
        for number in range(3):
            step(optimizer, weights, number)
        results.append(weights[0].detach().clone())
    assert torch.equal(*results)


def test_it_travels_with_the_optimizers_state() -> None:
    whole, weights = optimizer_of(4)
    average = MovingAverage(whole, 0.8)
    step(whole, weights, 0)
    resumed, others = optimizer_of(4)
    again = MovingAverage(resumed, 0.8)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    others[0].data.copy_(weights[0].detach())
    for optimizer, chosen, each in ((whole, weights, average), (resumed, others, again)):
        step(optimizer, chosen, 1)
        each.put_in_place()
    assert torch.equal(weights[0], others[0])


def test_what_gets_no_gradient_is_not_averaged() -> None:
    optimizer, weights = optimizer_of(3, 2)
    average = MovingAverage(optimizer, 0.5)
    idle = weights[1].detach().clone()
    step(optimizer, weights[:1], 0)
    step(optimizer, weights, 1)  # AdamW makes the moments of the second only now
    assert not torch.equal(weights[1], idle)
    average.put_in_place()
    assert torch.isfinite(weights[1]).all()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_a_blend_is_linear_and_exact_at_its_ends(alpha: float) -> None:
    torch.manual_seed(0)
    original, trained = torch.randn(1000) * 1e-3, torch.randn(1000) * 1e3
    found = Interpolation(lambda: {"w": original}, alpha)("w", trained)
    torch.testing.assert_close(found, original + alpha * (trained - original))
    if alpha in (0.0, 1.0):
        assert torch.equal(found, trained if alpha else original)


def test_originals_are_loaded_once_and_only_when_asked_for() -> None:
    calls = []

    def load() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"scale": torch.tensor(2.0)}

    blend = Interpolation(load, 0.5)
    assert not calls
    assert blend("scale", torch.tensor([4.0])).tolist() == [3.0]  # a scalar trains as a vector
    added = torch.tensor([7.0])
    assert blend("added", added) is added
    assert len(calls) == 1
    assert as_trained("scale", added) is added
