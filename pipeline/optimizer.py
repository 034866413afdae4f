"""AdamW over named groups of parameters: its settings, and what it trains. No DeepSpeed here."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.config import PhaseConfig
from pipeline.hashes import fingerprint_of
from pipeline.models.placement import full_shape
from pipeline.phases import Group


def settings_of(groups: Sequence[Group], phase: PhaseConfig) -> list[dict[str, Any]]:
    """Of each group, for the optimizer; all but the learning rate, which every step sets."""
    betas = (phase.betas[0], phase.betas[1])
    return [
        {
            "weight_decay": phase.weight_decay if each.decays else 0.0,
            "betas": betas,
            "eps": phase.eps,
        }
        for each in groups
    ]


def adamw(groups: Sequence[Group], settings: Sequence[dict[str, Any]]) -> torch.optim.AdamW:
    """The optimizer, with one param group for each of `groups`."""
    pairs = zip(groups, settings, strict=True)
    return torch.optim.AdamW([{"params": each.parameters, **own} for each, own in pairs])


def skip_what_is_not_finite(optimizer: torch.optim.Optimizer) -> None:
    """Makes a step whose gradients are not finite do nothing, and `optimizer.overflow` say so.

    DeepSpeed's own optimizers do this; without ZeRO and in float32 it uses ours as it is, and only
    reads `overflow`. The gradients are summed over the ranks by then, so all ranks find the same.
    """

    def check(optimizer: Any, *_: Any) -> None:
        having = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        optimizer.overflow = not all(bool(each.grad.isfinite().all()) for each in having)
        if optimizer.overflow:
            for each in having:
                each.grad = None

    optimizer.register_step_pre_hook(check)


def what_trains(
    trained: Sequence[tuple[str, nn.Parameter]], groups: Sequence[Group]
) -> dict[str, Any]:
    """What a checkpoint must have been written of to be loaded: names, shapes, groups; hashed."""
    names = {parameter: name for name, parameter in trained}
    listing = [[(names[p], list(full_shape(p))) for p in each.parameters] for each in groups]
    return {
        "parameters": sum(full_shape(parameter).numel() for _, parameter in trained),
        "hash": fingerprint_of(listing),
    }


def masters(
    param_groups: Sequence[dict[str, Any]], groups: Sequence[Group]
) -> dict[nn.Parameter, torch.Tensor]:
    """Each parameter's float32 master without ZeRO: what the optimizer steps, in the same order."""
    return {
        parameter: master
        for group, theirs in zip(groups, param_groups, strict=True)
        for parameter, master in zip(group.parameters, theirs["params"], strict=True)
    }
