"""The ST networks: from the image feature to embeddings that a language model can read.

The mappers of ClipCap, and LaVIN's projection. They assume nothing about the encoder and the
language model but their widths. Parameter names are ours; `official.py` and `official_lavin.py`
hold the maps from the references' names. Every submodule with parameters has `reset_parameters`,
so that `placement.fill` can initialise it.
"""

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import STConfig
from pipeline.errors import ConfigError
from pipeline.models.adapters import XavierLinear

# What the output of a network is a sum of, or a product with.
_LAST = re.compile(r"(down|project|layers\.\d+\.(attn_out|mlp_down))\.(weight|bias)|prefix_const")

MLP_RATIO = 2  # hidden width of a transformer layer's MLP; SOURCE: ClipCap train.py:205-217


class MLPMapper(nn.Module):
    """Linear, tanh, linear. SOURCE: ClipCap train.py:80-92, 242-244.

    Args:
        width: C, of the image feature.
        prefix_length: k, embeddings handed to the language model.
        llm_width: D, of its embeddings.
        hidden: of the layer between; None is the reference's D * k // 2.
    """

    def __init__(
        self, width: int, prefix_length: int, llm_width: int, hidden: int | None = None
    ) -> None:
        super().__init__()
        hidden = llm_width * prefix_length // 2 if hidden is None else hidden
        self.prefix_length, self.llm_width = prefix_length, llm_width
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, llm_width * prefix_length)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C) -> (B, k, D)."""
        flat: Tensor = self.down(torch.tanh(self.up(features)))  # (B, k * D)
        return flat.reshape(-1, self.prefix_length, self.llm_width)


class LinearMapper(nn.Module):
    """One linear layer. SOURCE: ClipCap predict.py:140-151, for prefixes longer than 10.

    Args:
        width: C, of the image feature.
        prefix_length: k, embeddings handed to the language model.
        llm_width: D, of its embeddings.
    """

    def __init__(self, width: int, prefix_length: int, llm_width: int) -> None:
        super().__init__()
        self.prefix_length, self.llm_width = prefix_length, llm_width
        self.project = nn.Linear(width, llm_width * prefix_length)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C) -> (B, k, D)."""
        flat: Tensor = self.project(features)  # (B, k * D)
        return flat.reshape(-1, self.prefix_length, self.llm_width)


class VisualProjection(nn.Module):
    """Linear, SiLU, linear on each of an image's features. SOURCE: LaVIN lavin/model.py:198-220.

    Args:
        width: C, of an image feature.
        hidden: of the layer between.
        llm_width: D, of the language model's embeddings.
    """

    def __init__(self, width: int, hidden: int, llm_width: int) -> None:
        super().__init__()
        self.up = XavierLinear(width, hidden)
        self.down = XavierLinear(hidden, llm_width)

    def forward(self, features: Tensor) -> Tensor:
        """(B, k, C) -> (B, k, D)."""
        out: Tensor = self.down(F.silu(self.up(features)))
        return out


class TransformerMapper(nn.Module):
    """The feature unfolded into tokens, beside learnt constants that become the prefix.

    SOURCE: ClipCap train.py:95-217.

    Args:
        width: C, of the image feature.
        prefix_length: k, embeddings handed to the language model; as many constants are learnt.
        llm_width: D, of its embeddings and of this transformer.
        clip_length: tokens that the feature is unfolded into.
        num_layers: pre-norm layers.
        num_heads: of each layer; must divide D.

    Raises:
        ConfigError: `num_heads` does not divide `llm_width`.
    """

    def __init__(
        self,
        width: int,
        prefix_length: int,
        llm_width: int,
        clip_length: int,
        num_layers: int,
        num_heads: int,
    ) -> None:
        super().__init__()
        if llm_width % num_heads:
            raise ConfigError(
                f"st.num_heads: {num_heads} does not divide the LLM's width {llm_width}; "
                "choose a divisor"
            )
        self.clip_length, self.llm_width = clip_length, llm_width
        self.unfold = nn.Linear(width, clip_length * llm_width)
        self.prefix_const = nn.Parameter(torch.empty(prefix_length, llm_width))
        self.layers = nn.ModuleList(
            TransformerLayer(llm_width, num_heads) for _ in range(num_layers)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises the constants, the only parameters of this module itself."""
        nn.init.normal_(self.prefix_const)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C) -> (B, k, D)."""
        tokens = self.unfold(features).reshape(-1, self.clip_length, self.llm_width)
        prefix = self.prefix_const.expand(len(features), -1, -1)  # (B, k, D)
        hidden = torch.cat([tokens, prefix], dim=1)  # (B, clip_length + k, D)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden[:, self.clip_length :]


class TransformerLayer(nn.Module):
    """Pre-norm attention and ReLU MLP. SOURCE: ClipCap train.py:95-163."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attn = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.attn_out = nn.Linear(dim, dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp_up = nn.Linear(dim, MLP_RATIO * dim)
        self.mlp_down = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        hidden = hidden + self._attend(self.norm_attn(hidden))
        update: Tensor = self.mlp_down(F.relu(self.mlp_up(self.norm_mlp(hidden))))
        return hidden + update

    def _attend(self, hidden: Tensor) -> Tensor:
        query = self._heads(self.query(hidden))
        key, value = (self._heads(part) for part in self.key_value(hidden).chunk(2, dim=-1))
        mixed = F.scaled_dot_product_attention(query, key, value)  # (B, H, S, D / H)
        out: Tensor = self.attn_out(mixed.transpose(1, 2).flatten(2))
        return out

    def _heads(self, hidden: Tensor) -> Tensor:
        batch, length, dim = hidden.shape
        split = hidden.reshape(batch, length, self.num_heads, dim // self.num_heads)
        return split.transpose(1, 2)  # (B, H, S, D / H)


def build_st(cfg: STConfig, *, width: int, llm_width: int) -> nn.Module:
    """The ST network of a recipe.

    Args:
        cfg: the recipe's `st`.
        width: C, of the image feature.
        llm_width: D, of the language model's embeddings.

    Returns:
        A module (B, C) -> (B, prefix_length, D).

    Raises:
        ConfigError: `st.num_heads` does not divide the language model's width.
    """
    if cfg.kind == "mlp":
        return MLPMapper(width, cfg.prefix_length, llm_width, cfg.hidden)
    if cfg.kind == "linear":
        return LinearMapper(width, cfg.prefix_length, llm_width)
    return TransformerMapper(
        width, cfg.prefix_length, llm_width, cfg.clip_length, cfg.num_layers, cfg.num_heads
    )


def silent(st: nn.Module) -> dict[str, Tensor]:
    """Values with which a network of `build_st` says nothing about any image, and still learns.

    st: may be on the meta device.

    Returns:
        Zeros for the parameters of its last layers, by name: the output is zero, gradients are not.
    """
    named = st.named_parameters()
    return {name: torch.zeros(each.shape) for name, each in named if _LAST.fullmatch(name)}
