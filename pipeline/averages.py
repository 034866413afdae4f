"""Weights that no single step made: the average over steps, and the way back to the original.

`MovingAverage` lives beside any optimizer of torch and sees what that updates; under DeepSpeed this
is the rank's own share of the float32 weights, whatever the ZeRO stage. `Interpolation` is applied
to whole tensors when an export is written. Neither knows models, phases or DeepSpeed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Blend = Callable[[str, Tensor], Tensor]  # (name, trained value) -> exported value


def as_trained(name: str, value: Tensor) -> Tensor:
    """The blend that changes nothing."""
    return value


class MovingAverage:
    """average <- decay * average + (1 - decay) * weights after each step of `optimizer`.

    It starts at the weights before the first step. Kept in the optimizer's own state, so that it is
    saved, partitioned and offloaded with the moments: 4 bytes a trained parameter, divided by the
    ranks under ZeRO, and one pass over them a step. Skipped steps leave it alone.

    Args:
        optimizer: any that steps the tensors in its `param_groups`.
        decay: in (0, 1); about the last 1 / (1 - decay) steps are averaged.
    """

    _KEY = "moving_average"

    def __init__(self, optimizer: torch.optim.Optimizer, decay: float) -> None:
        self._optimizer, self._decay = optimizer, decay
        self._initial: dict[Tensor, Tensor] = {}
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def put_in_place(self) -> None:
        """Overwrites the optimizer's weights with their average: for after the last step."""
        for weights, state in self._optimizer.state.items():
            if self._KEY in state:
                weights.detach().copy_(state[self._KEY])

    def _before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # Not yet in the state: the optimizer takes a state that is not empty for its own.
        for each in _stepped(optimizer):
            if self._KEY not in optimizer.state.get(each, {}):
                self._initial[each] = each.detach().clone()

    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for each in _stepped(optimizer):
            state = optimizer.state[each]
            if each in self._initial:
                state[self._KEY] = self._initial.pop(each)
            state[self._KEY].lerp_(each.detach(), 1 - self._decay)


class Interpolation:
    """original + alpha * (trained - original), in float32; a tensor without an original stays.

    Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT), 2022, section 3. Exact at
    both ends: 0 gives the original and 1 the trained weights bit for bit.

    Args:
        load_original: the original tensors by name; called once, when the first is asked for.
        alpha: in [0, 1].
    """

    def __init__(self, load_original: Callable[[], Mapping[str, Tensor]], alpha: float) -> None:
        self._load, self._alpha = load_original, alpha
        self._original: Mapping[str, Tensor] | None = None

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """The blended value of a trained tensor, in its shape and on its device."""
        if self._original is None:
            self._original = self._load()
        if name not in self._original:
            return value
        original = self._original[name].to(value.device, torch.float32).reshape(value.shape)
        return torch.lerp(original, value.float(), self._alpha)


def _stepped(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What this step updates: under ZeRO-3 one partition of the weights at a time."""
    groups = optimizer.param_groups
    return [each for group in groups for each in group["params"] if each.grad is not None]
