"""The MM-adapter: a low-rank update of hidden states, mixed from two experts by a router.

SOURCE: LaVIN lavin/mm_adapter.py:10-51 (RepAdapter router). It knows neither where it is put nor
what it routes by: the caller shows the router what it shall see. For given routing weights it is
linear, so it can be folded into the linear maps that read its output. Every module with parameters
has `reset_parameters` for `placement.fill`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from pipeline.config import MMAdapterConfig
from pipeline.errors import ConfigError

EXPERTS = 2
GROUPS = 2  # of each expert's map. SOURCE: mm_adapter.py:28-36


class XavierLinear(nn.Linear):
    """A linear layer that starts as the references' do: Xavier-uniform weights, zero bias."""

    def reset_parameters(self) -> None:
        """Initialises weight and bias."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)


class Router(nn.Linear):
    """Routing weights: softmax of a linear map over a temperature.

    Args:
        width: D, of what it sees.
        temperature: t; the larger, the more even the weights.
    """

    def __init__(self, width: int, temperature: float) -> None:
        super().__init__(width, EXPERTS)
        self.temperature = temperature

    def forward(self, seen: Tensor) -> Tensor:
        """(..., D) -> (..., 2), weights that add up to 1."""
        weights = (super().forward(seen).float() / self.temperature).softmax(-1)
        return weights.to(seen.dtype)


class Expert(nn.Module):
    """A linear map in groups: each half of the output sees its half of the input.

    Args:
        hidden: h, of the input.
        width: D, of the output.
    """

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, hidden // GROUPS))
        self.bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts at zero, so that a fresh adapter changes nothing."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor, share: Tensor) -> Tensor:
        """share * (B z + b); the share is applied to the few hidden numbers.

        Args:
            hidden: z, (..., h).
            share: (..., 1), or what broadcasts to it.

        Returns:
            (..., D).
        """
        scaled = (share * hidden).unsqueeze(-2)  # (..., 1, h)
        parts = zip(scaled.chunk(GROUPS, -1), self.weight.chunk(GROUPS, 0), strict=True)
        mapped = torch.cat([(part @ weight.mT) for part, weight in parts], -1).squeeze(-2)
        return mapped + share * self.bias

    def dense(self) -> Tensor:
        """B as one matrix (D, h), zero outside its blocks."""
        size = self.weight.shape[1]
        blocks = enumerate(self.weight.chunk(GROUPS, 0))
        return torch.cat([F.pad(b, (i * size, (GROUPS - 1 - i) * size)) for i, b in blocks])


class MMAdapter(nn.Module):
    """x + s * sum_i w_i * (B_i dropout(A x + a) + b_i).

    Args:
        width: D, of the hidden states.
        cfg: size, scale, temperature, dropout.

    Raises:
        ValueError: the groups do not divide D or the adapter's own width.
    """

    def __init__(self, width: int, cfg: MMAdapterConfig) -> None:
        super().__init__()
        if cfg.hidden % GROUPS or width % GROUPS:
            raise ValueError(f"{GROUPS} groups do not divide both {cfg.hidden} and {width}")
        self.scale = cfg.scale
        self.router = Router(width, cfg.temperature)
        self.down = XavierLinear(width, cfg.hidden)
        self.drop = nn.Dropout(cfg.dropout)
        self.up = nn.ModuleList(Expert(cfg.hidden, width) for _ in range(EXPERTS))

    def forward(self, hidden: Tensor, routing: Tensor) -> Tensor:
        """The adapted hidden states.

        Args:
            hidden: (B, T, D).
            routing: (B, 1 or T, 2), what `router` gave.

        Returns:
            (B, T, D).
        """
        low = self.drop(self.down(hidden))  # (B, T, h)
        for expert, weight in zip(self.up, (self.scale * routing).chunk(EXPERTS, -1), strict=True):
            hidden = hidden + expert(low, weight)
        return hidden

    @torch.no_grad()
    def as_linear(self, routing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For fixed routing weights and without dropout: x -> x + U (A x) + c.

        Args:
            routing: (2,).

        Returns:
            U (D, h), A (h, D) and c (D,), float32.
        """
        shares = (self.scale * routing).float()
        experts = [(each.dense().float(), each.bias.float()) for each in self._experts()]
        up = torch.stack([share * dense for share, (dense, _) in zip(shares, experts, strict=True)])
        bias = torch.stack([share * each for share, (_, each) in zip(shares, experts, strict=True)])
        mixed = up.sum(0)
        return mixed, self.down.weight.float(), mixed @ self.down.bias.float() + bias.sum(0)

    def _experts(self) -> list[Expert]:
        return [each for each in self.up if isinstance(each, Expert)]


@torch.no_grad()
def fold_into(linear: nn.Module, up: Tensor, down: Tensor, bias: Tensor) -> None:
    """Changes `linear` in place to do to x what it did to x + U (A x) + c.

    Computed in float32; whole weights are needed, of no more than `linear`.

    Args:
        linear: torch's Linear, or transformers' Conv1D, whose weight is transposed.
        up, down, bias: U (D, h), A (h, D), c (D,), from `MMAdapter.as_linear`.

    Raises:
        ConfigError: another kind of module: quantised, or wrapped by LoRA.
    """
    if type(linear) not in (nn.Linear, Conv1D):
        raise ConfigError(
            f"adapters cannot be folded into a {type(linear).__name__}; merge LoRA first, and load "
            "the weights with llm.quantize=none"
        )
    weight: Any = linear.weight
    matrix = weight.T if isinstance(linear, Conv1D) else weight  # (out, D), a view
    exact = matrix.float()
    if linear.bias is None:
        linear.bias = nn.Parameter(weight.new_zeros(len(matrix)), requires_grad=False)
    old: Any = linear.bias
    old.copy_(old.float() + exact @ bias)
    matrix.copy_(exact + (exact @ up) @ down)
