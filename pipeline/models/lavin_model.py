"""LaVIN's model: adapters in the image tower and in the language model, routed by modality.

Before each row stands a modality token (text or image) that sees only itself and is seen by nobody:
its hidden state before a layer's attention gives that layer's routing weights, and nothing else. In
training it is carried through the layers in front of its row, where the rest needs no mask for it;
one token a row, so that dropout differs between rows. Where keys and values are cached it is not
there: its weights have one of two values in each layer, which are computed once. Positions count it
in both, so BOS is at position 1. SOURCE: Luo et al., 2023 (LaVIN); its code lavin/model.py:259-332,
which decodes at other positions than it trains at (lavin/generator.py:97-101); this does not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedModel

from pipeline.config import MMAdapterConfig
from pipeline.models.adapters import MMAdapter, fold_into
from pipeline.models.decoder import decoder, use_attention
from pipeline.models.encoder import ImageEncoder
from pipeline.models.multimodal import MultimodalLM, evaluating
from pipeline.models.tower import AdaptedTower

_ATTENTION = "eim_lavin"
_AttentionInterface: Any = AttentionInterface  # transformers leaves it untyped


class LanguageAdapters(nn.Module):
    """What LaVIN adds to a language model: an adapter for each layer, and the modality tokens.

    Args:
        depth: layers of the language model.
        width: D, of its hidden states.
        cfg: of the adapters.
    """

    def __init__(self, depth: int, width: int, cfg: MMAdapterConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MMAdapter(width, cfg) for _ in range(depth))
        self.modality = nn.Embedding(2, width)  # 0: text alone, 1: with an image


class Lavin(MultimodalLM):
    """Adapted tower, visual projection, and a language model with adapters before its attention.

    Args:
        encoder: the image tower, usually an `AdaptedTower`; None where features are given.
        st: (I, k, C) -> (I, k, D).
        llm: changed in place: its norms get hooks, its attention is replaced.
        adapters: for its layers.

    Raises:
        ConfigError: the language model is of an architecture that is not known.
    """

    def __init__(
        self,
        encoder: ImageEncoder | None,
        st: nn.Module,
        llm: PreTrainedModel,
        adapters: LanguageAdapters,
    ) -> None:
        super().__init__(encoder, st, llm)
        self.adapters = adapters
        self._fixed: Tensor | None = None  # (L, R, 2): routing weights while no token gives them
        self._table: Tensor | None = None  # (L, 2, 2): what `routing` gives, where nothing trains
        self._folded: bool | None = None  # the modality whose adapters are in the weights
        use_attention(llm, _ATTENTION, attend_past_modality)
        for layer in decoder(llm).layers:
            layer.norm.register_forward_hook(partial(self._adapt, layer.index))

    def units(self) -> tuple[nn.Module, ...]:
        """As in the base class, the tower apart from its adapters."""
        if isinstance(self.encoder, AdaptedTower):
            tower = (self.encoder.visual, self.encoder.adapters)
            return (*tower, self.st, self.llm, self.adapters)
        return (*super().units(), self.adapters)

    @torch.no_grad()
    def routing(self) -> Tensor:
        """Every layer's routing weights, (L, 2, 2): by layer, by modality (text, image).

        A pass of the two modality tokens, each a row of its own, at position 0.
        """
        kept: list[Tensor] = []

        def keep(router: nn.Module, args: tuple[Tensor, ...], weights: Tensor) -> None:
            kept.append(weights[:, 0])

        handles = [each.router.register_forward_hook(keep) for each in self._layers()]
        llm: Any = self.llm
        try:
            with evaluating(self):
                kinds = torch.arange(2, device=self.adapters.modality.weight.device)
                llm(inputs_embeds=self.adapters.modality(kinds)[:, None], use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(kept)

    @torch.no_grad()
    def fold(self, has_image: bool) -> None:
        """Puts the adapters of one modality into the language model's weights, for inference.

        From then on the model takes rows of that modality only, and runs no adapters in the
        language model. It needs whole weights: a model that is partitioned by ZeRO-3 is exported
        first. Exact, because an adapter is linear for given routing weights.
        """
        if self._folded is not None:
            raise ValueError("the adapters are folded already")
        table = self.routing()[:, int(has_image)]  # (L, 2)
        layers = decoder(self.llm).layers
        for layer, adapter, weights in zip(layers, self._layers(), table, strict=True):
            linear = adapter.as_linear(weights)
            for projection in layer.projections:
                fold_into(projection, *linear)
        self._folded = has_image

    def settle(self) -> None:
        """Computes the routing weights once, for a model that is done with training and moving."""
        self._table = self.routing()

    def extend(self, inputs: Tensor, cache: Cache, image_rows: Tensor) -> Tensor:
        """As in the base class, at the places that count the modality token."""
        llm: Any = self.llm
        new = inputs.shape[1]
        seen = image_rows.new_ones(len(inputs), cache.get_seq_length() + new)  # (R, P + T)
        with self._tokenless(seen, image_rows) as told:
            told["position_ids"] = told["position_ids"][:, -new:]
            options = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
            out = llm(inputs_embeds=inputs, **told, **options)
        logits: Tensor = out.logits[:, -1]
        return logits

    def _run(self, inputs: Tensor, attention_mask: Tensor, image_rows: Tensor) -> Tensor:
        llm: Any = self.llm
        if self._folded is not None:
            with self._tokenless(attention_mask, image_rows) as told:
                out = llm(inputs_embeds=inputs, use_cache=False, **told)
        else:
            first = self.adapters.modality((image_rows >= 0).long())[:, None]  # (R, 1, D)
            seen = torch.ones_like(attention_mask[:, :1])
            out = llm(
                inputs_embeds=torch.cat([first.to(inputs.dtype), inputs], 1),
                attention_mask=torch.cat([seen, attention_mask], 1),
                use_cache=False,
                modality_first=True,
            )
        logits: Tensor = out.logits
        return logits

    def _continue(
        self, inputs: Tensor, attention_mask: Tensor, image_rows: Tensor, **options: Any
    ) -> Tensor:
        llm: Any = self.llm
        with self._tokenless(attention_mask, image_rows) as told:
            tokens: Tensor = llm.generate(inputs_embeds=inputs, **told, **options)
        return tokens

    @contextmanager
    def _tokenless(self, attention_mask: Tensor, image_rows: Tensor) -> Iterator[dict[str, Tensor]]:
        """Rows without their modality token: positions that count it, routing weights for it."""
        has_image = image_rows >= 0
        if self._folded is None:
            table = self.routing() if self._table is None else self._table
            self._fixed = table[:, has_image.long()]
        elif bool((has_image != self._folded).any()):
            kind = "with an image" if self._folded else "without an image"
            raise ValueError(f"this model was folded for rows {kind}")
        try:
            positions = attention_mask.long().cumsum(1)  # the token is at 0
            yield {"attention_mask": attention_mask, "position_ids": positions}
        finally:
            self._fixed = None

    def _adapt(
        self, index: int, norm: nn.Module, args: tuple[Tensor, ...], normed: Tensor
    ) -> Tensor:
        if self._folded is not None:
            return normed
        adapter = self._layers()[index]
        if self._fixed is None:
            routing = adapter.router(normed[:, :1])  # the modality token, which comes first
        else:
            given = self._fixed[index]  # (R, 2)
            routing = given.repeat_interleave(len(normed) // len(given), 0)[:, None]  # beams
        adapted: Tensor = adapter(normed, routing)
        return adapted

    def _layers(self) -> list[MMAdapter]:
        return [each for each in self.adapters.layers if isinstance(each, MMAdapter)]


def attend_past_modality(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    modality_first: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA of a row whose first token, where there is one, sees itself and is seen by nobody.

    SOURCE: LaVIN model.py:320 writes this as a mask, which costs the fast kernels.

    Args:
        module: the attention module.
        query, key, value: (R, H, T, d), and (R, Hkv, T, d) twice.
        mask: as SDPA's in transformers.
        modality_first: whether the first token is a modality token; the caller of the language
            model passes it to its forward.

    Returns:
        (R, T, H, d) and no attention weights.
    """
    sdpa = _AttentionInterface()["sdpa"]
    if not modality_first:
        out: tuple[Tensor, None] = sdpa(module, query, key, value, mask, **kwargs)
        return out
    groups = query.shape[1] // value.shape[1]
    own = value[:, :, :1].repeat_interleave(groups, 1).transpose(1, 2)  # softmax over one is 1
    rest = None if mask is None else mask[..., 1:, 1:]
    main, _ = sdpa(module, query[:, :, 1:], key[:, :, 1:], value[:, :, 1:], rest, **kwargs)
    return torch.cat([own, main], 1), None
