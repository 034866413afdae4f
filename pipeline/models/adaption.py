"""Adaption prompts: learnt keys and values beside the text, let in by gates that start at zero.

LLaMA-Adapter's way into a frozen language model (Zhang et al., 2023, arXiv:2303.16199): in the
adapted layers every query also attends to prompts, with a softmax of their own, and what it finds
is added with the weight tanh(gate). It assumes a decoder that `decoder.py` knows, and nothing about
where the images' embeddings come from.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from pipeline.models.decoder import Decoder, DecoderLayer, use_attention

_NAME = "eim_adaption_prompts"  # in transformers' registry of attention functions
_AttentionInterface: Any = AttentionInterface  # transformers leaves it untyped


class LatePrompt(nn.Module):
    """The learnt prompts of one of the topmost layers, with a gate for each head.

    Args:
        length: K, prompts of the layer.
        width: D, of the language model.
        heads: H, of its queries.
        sees_images: whether an image's embedding is added to every prompt (V1, eq. 10).
    """

    def __init__(self, length: int, width: int, heads: int, *, sees_images: bool) -> None:
        super().__init__()
        self.sees_images = sees_images
        self.prompt = nn.Parameter(torch.empty(length, width))
        self.gate = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 1) and gates of zero, as the reference (llama/model.py:84, 182)."""
        nn.init.normal_(self.prompt)
        nn.init.zeros_(self.gate)

    def forward(self, visual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The prompts of a row without an image, and of a row with each image.

        Args:
            visual: (I, 1, D), None where there is no image.

        Returns:
            prompts (V, K, D) and their weights (V, H). Variant 0 is without an image, 1 + i with
            image i; where the images do not reach these prompts, variant 0 is the only one.
        """
        prompts = self.prompt[None]
        if self.sees_images and visual is not None:
            prompts = torch.cat([prompts, prompts + visual])
        return prompts, self.gate.tanh().expand(len(prompts), -1)


class EarlyPrompt(nn.Module):
    """An image's own embeddings as the prompts of one of the first layers: V2's early fusion.

    SOURCE: Gao et al., 2023, arXiv:2304.15010, section 3.3; the released code does not have it.

    Args:
        length: embeddings of an image.
        width: D.
        heads: H.
    """

    def __init__(self, length: int, width: int, heads: int) -> None:
        super().__init__()
        self.length, self.width = length, width
        self.gate = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gates of zero."""
        nn.init.zeros_(self.gate)

    def forward(self, visual: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `LatePrompt`; variant 0 has prompts of zero with the weight zero.

        Args:
            visual: (I, length, D).
        """
        gate = self.gate.tanh()
        prompts = gate.new_zeros(1, self.length, self.width)
        if visual is not None:
            prompts = torch.cat([prompts, visual])
        present = gate.new_ones(len(prompts), 1)
        present[0] = 0
        # The product keeps the gate in the graph on a rank without an image: partitioned ranks
        # reduce the gradients of the same parameters.
        return prompts, present * gate


@dataclass(frozen=True)
class _Shown:
    """What the language model is shown in one batch."""

    visual: Tensor | None = None  # (I, n, D)
    rows: Tensor | None = None  # (R,) long, the image of each row, -1 for none; None: no image
    kept: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)  # by layer


@dataclass(frozen=True)
class _Adapted:
    """One layer's prompts in one batch; travels through the layer as a keyword argument."""

    layer: DecoderLayer
    prompt: nn.Module
    shown: _Shown

    def keys_values(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (rows, Hkv, K, d) of the prompts, and their weights (rows, H).

        rows: a multiple of the batch's, each row repeated: beams of a search.
        """
        keys, values, gates = self._variants()
        if self.shown.rows is None or len(keys) == 1:
            return keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), gates[:1]
        beams = rows // len(self.shown.rows)
        variant = (self.shown.rows + 1).repeat_interleave(beams)
        return keys[variant], values[variant], gates[variant]

    def _variants(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of every variant, computed once in a batch.

        With gradients a layer runs once, or again to recompute its activations, which must then
        build the same graph; without, it runs once a token.
        """
        kept = self.shown.kept
        if self.layer.index in kept:
            return kept[self.layer.index]
        prompts, gates = self.prompt(self.shown.visual)
        made = (*self.layer.keys_values(prompts), gates)
        if not torch.is_grad_enabled():
            kept[self.layer.index] = made
        return made


class AdaptionPrompts(nn.Module):
    """The prompts of all adapted layers, attached to a language model.

    Args:
        decoder: the language model's layers.
        layers: L, topmost layers with prompts of their own.
        length: K, prompts of each.
        early_layers: first layers that see the image's embeddings as prompts; 0 adds them (there
            is one an image then) to the prompts of the topmost layers instead.
        early_length: embeddings of an image; needed with `early_layers` only.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        layers: int,
        length: int,
        early_layers: int = 0,
        early_length: int = 1,
    ) -> None:
        super().__init__()
        width, heads = decoder.hidden_size, decoder.heads
        self.late = nn.ModuleList(
            LatePrompt(length, width, heads, sees_images=not early_layers) for _ in range(layers)
        )
        self.early = nn.ModuleList(
            EarlyPrompt(early_length, width, heads) for _ in range(early_layers)
        )
        self._shown = _Shown()

    def gates(self) -> nn.ParameterList:
        """The gates of the topmost layers' prompts."""
        return nn.ParameterList(each.gate for each in self.late if isinstance(each, LatePrompt))

    def attach(self, llm: PreTrainedModel, decoder: Decoder) -> None:
        """Makes the language model attend to the prompts; call it once.

        Whoever calls the language model outside of `showing` shows it no image.
        """
        use_attention(llm, _NAME, attention)
        first = len(decoder.layers) - len(self.late)
        adapted = [
            *zip(decoder.layers[: len(self.early)], self.early, strict=True),
            *zip(decoder.layers[first:], self.late, strict=True),
        ]
        for layer, prompt in adapted:
            # Outside of what activation checkpointing recomputes, so the layer keeps its arguments.
            hook = _Hook(self, layer, prompt)
            layer.module.register_forward_pre_hook(hook, with_kwargs=True)

    @contextmanager
    def showing(self, visual: Tensor | None, rows: Tensor | None) -> Iterator[None]:
        """Inside, the language model sees these images; the prompts' values must not change.

        Args:
            visual: (I, n, D), the images' embeddings; None where there is no image.
            rows: (R,) long, the image of each row, -1 for none.
        """
        before = self._shown
        self._shown = _Shown(visual, rows)
        try:
            yield
        finally:
            self._shown = before


@dataclass(frozen=True)
class _Hook:
    """Hands a layer its prompts; transformers passes keyword arguments on to the attention."""

    prompts: AdaptionPrompts
    layer: DecoderLayer
    prompt: nn.Module

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        adapted = _Adapted(self.layer, self.prompt, self.prompts._shown)
        return args, {**kwargs, "adapted": adapted}


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    adapted: _Adapted | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA over the text, plus tanh(gate) times SDPA over the layer's prompts, which have no place.

    SOURCE: LLaMA-Adapter llama/model.py:97-126; the paper's eq. 7 has the gate without the tanh.
    Args and result as `decoder.Attention`.
    """
    sdpa = _AttentionInterface()["sdpa"]
    text, _ = sdpa(module, query, key, value, mask, scaling=scaling, **kwargs)  # (R, T, H, d)
    if adapted is None:
        return text, None
    keys, values, gates = adapted.keys_values(len(query))
    seen, _ = sdpa(module, query, keys, values, None, scaling=scaling, is_causal=False)
    return text + gates[:, None, :, None] * seen, None
