"""Where a decoder-only language model of transformers can be attached to, layer by layer.

The families that change what happens inside a language model find its layers here and go through
public interfaces: module hooks on what this file names, and `AttentionInterface.register` for the
attention itself. So hooks of others (ZeRO-3), activation checkpointing and KV caches go on working.
It assumes pre-norm layers whose first norm feeds the attention alone, as the listed ones are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers import PreTrainedModel as LanguageModel
from transformers.masking_utils import sdpa_mask

from pipeline.errors import ConfigError

# (attention module, query (B, H, T, d), key and value (B, Hkv, S, d), mask, **kwargs of the model's
# forward) -> (output (B, T, H, d), attention weights or None), as transformers documents it.
Attention = Callable[..., tuple[Tensor, Tensor | None]]

_AttentionInterface: Any = AttentionInterface  # transformers leaves these untyped
_AttentionMaskInterface: Any = AttentionMaskInterface


@dataclass(frozen=True)
class _Architecture:
    """The attribute names of one architecture."""

    layers: str  # of the base model
    norm: str  # of a layer, before the attention
    attention: str  # of a layer
    projections: tuple[str, ...]  # of the attention: query, key, value; or all three in one
    key_norm: str | None = None  # of the attention, on each key head before any position


_SPLIT = ("q_proj", "k_proj", "v_proj")
_LLAMA = _Architecture("layers", "input_layernorm", "self_attn", _SPLIT)

_ARCHITECTURES: Mapping[str, _Architecture] = MappingProxyType(
    {
        "gpt2": _Architecture("h", "ln_1", "attn", ("c_attn",)),
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "qwen2": _LLAMA,
        "qwen3": _Architecture("layers", "input_layernorm", "self_attn", _SPLIT, "k_norm"),
    }
)


@dataclass(frozen=True)
class DecoderLayer:
    """One layer: its modules, and the linear maps that read what its first norm gives."""

    index: int
    module: nn.Module
    norm: nn.Module  # its output goes into the attention and nowhere else
    attention: nn.Module  # its `layer_idx` is `index`
    kv_heads: int
    head_dim: int
    _names: _Architecture

    @property
    def projections(self) -> tuple[nn.Module, ...]:
        """(query, key, value), or one module for all three; what is there now, wrapped or not."""
        return tuple(getattr(self.attention, name) for name in self._names.projections)

    def keys_values(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the attention before any position is put into them.

        Args:
            hidden: (B, S, D), in the place of what the norm gives.

        Returns:
            Two tensors (B, Hkv, S, d).
        """
        projections = self.projections
        if len(projections) == 1:
            fused: Tensor = projections[0](hidden)
            _, key, value = fused.chunk(3, dim=-1)  # (B, S, D) each: no grouped queries here
        else:
            key, value = (each(hidden) for each in projections[1:])
        shape = (*key.shape[:-1], self.kv_heads, self.head_dim)
        key, value = key.reshape(shape), value.reshape(shape)
        if self._names.key_norm is not None:
            key = getattr(self.attention, self._names.key_norm)(key)
        return key.transpose(1, 2), value.transpose(1, 2)


@dataclass(frozen=True)
class Decoder:
    """The layers of a language model from the embeddings up, and its sizes."""

    layers: tuple[DecoderLayer, ...]
    hidden_size: int  # D
    heads: int  # H, of queries
    kv_heads: int  # Hkv, of keys and values; below H with grouped queries
    head_dim: int  # d


def decoder(llm: LanguageModel) -> Decoder:
    """The layers of a causal language model.

    Raises:
        ConfigError: an architecture that is not known here.
    """
    config: Any = llm.config.get_text_config()
    check_decoder(config)
    names = _ARCHITECTURES[config.model_type]
    base: Any = llm.base_model
    modules = list(getattr(base, names.layers))
    attentions = [getattr(each, names.attention) for each in modules]
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_dim = int(attentions[0].head_dim)
    layers = tuple(
        DecoderLayer(i, each, getattr(each, names.norm), attention, kv_heads, head_dim, names)
        for i, (each, attention) in enumerate(zip(modules, attentions, strict=True))
    )
    return Decoder(layers, int(config.hidden_size), heads, kv_heads, head_dim)


def check_decoder(config: PretrainedConfig) -> None:
    """Raises ConfigError for an architecture that is not known here; needs no weights."""
    kind = config.get_text_config().model_type
    if kind not in _ARCHITECTURES:
        raise ConfigError(
            f"llm.path: adapters inside a {kind} are not supported; use a language model of one of "
            f"{', '.join(_ARCHITECTURES)}, or family=clipcap, which takes any"
        )


def use_attention(llm: LanguageModel, name: str, function: Attention) -> None:
    """Makes `function` the attention of every layer, with the masks that SDPA gets.

    A mask is boolean (B or 1, 1, T, S), True where a query sees a key, or None for a plain causal
    one. Keyword arguments of the model's forward reach `function` too.

    Args:
        llm: changed in place.
        name: of the function in transformers' registry; one name, one function.
        function: see `Attention`; transformers' own are `AttentionInterface()[name]`.
    """
    _AttentionInterface.register(name, function)
    _AttentionMaskInterface.register(name, sdpa_mask)
    setter: Any = llm.set_attn_implementation
    setter(name)
