"""One row, continued token by token: what went through the model once is never computed again.

Only the tokens in which a row differs from the row before go through the language model, whoever
changed it: a next token, a next question, a shorter history. Knows neither texts nor how a token is
chosen.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from pipeline.models.multimodal import IMAGE_SLOT, MultimodalLM


class CachedRow:
    """The tokens of a row with their keys and values, on the device of its model.

    Args:
        model: in eval mode, whole.
        image_embeds: (1, k, D), from `image_embeddings`; None for a row without an image.
    """

    def __init__(self, model: MultimodalLM, image_embeds: Tensor | None) -> None:
        self._model = model
        self._known: list[int] = []  # ids whose keys and values the cache holds
        self._cache = DynamicCache()
        self._embeds = image_embeds
        self._device = next(model.llm.parameters()).device
        self._image_rows = torch.tensor([-1 if image_embeds is None else 0], device=self._device)

    @torch.no_grad()
    def next_logits(self, ids: Sequence[int]) -> Tensor:
        """Of the token behind a row. Once it has raised, this row is of no more use.

        Args:
            ids: the whole row, IMAGE_SLOT where an embedding of the image goes.

        Returns:
            (V,) float32.
        """
        known = min(_common(self._known, ids), len(ids) - 1)
        if self._known[known:]:
            self._cache.crop(known - len(self._known))  # negative: how many are removed
            del self._known[known:]
        new = torch.tensor([list(ids[known:])], device=self._device)  # (1, T)
        shown = self._image_rows if bool((new == IMAGE_SLOT).any()) else -torch.ones_like(new[:, 0])
        with self._model.seeing(self._embeds, self._image_rows):
            inputs = self._model.embed(new, self._embeds, shown)
            logits = self._model.extend(inputs, self._cache, self._image_rows)
        self._known += ids[known:]
        return logits[0].float()


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids both begin with."""
    unlike = (i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other)
    return next(unlike, min(len(a), len(b)))
