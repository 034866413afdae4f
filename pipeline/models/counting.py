"""Counts what goes through a language model, whoever calls it and however it is partitioned.

Knows nothing of what the passes are for. Assumes that the model is called as transformers calls it,
with keyword arguments.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class PassCounter:
    """Forward passes of a module, and positions of rows in them, padding left out."""

    def __init__(self) -> None:
        self._passes = self._positions = 0

    def take(self) -> tuple[int, int]:
        """(passes, positions) since it was last asked."""
        taken = self._passes, self._positions
        self._passes = self._positions = 0
        return taken

    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook. Behind cached keys the mask is longer than what goes through now."""
        embeds, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
        tokens: Tensor = kwargs["input_ids"] if embeds is None else embeds
        rows, length = tokens.shape[:2]  # (R, T) or (R, T, D)
        self._passes += 1
        if isinstance(mask, Tensor) and mask.dim() == 2:  # (R, >= T)
            self._positions += int(mask[:, -length:].sum())
        else:
            self._positions += rows * length


@contextmanager
def counting(llm: nn.Module) -> Iterator[PassCounter]:
    """Inside, every forward pass of `llm` is counted."""
    counter = PassCounter()
    handle = llm.register_forward_pre_hook(counter.see, with_kwargs=True)
    try:
        yield counter
    finally:
        handle.remove()
