"""Small parts of a language model's own layers that can train: its norms, a bias and a scale.

LLaMA-Adapter V2's bias tuning: y = scale * (W x + bias) in every linear map of the layers, and
unfrozen norms. The maps keep their modules and names, so weights stay loadable and partitioned;
what is new hangs on them by hooks. It assumes a decoder that `decoder.py` knows.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pipeline.models.decoder import Decoder
from pipeline.models.linear import linear_maps


class Affine(nn.Module):
    """y -> scale * (y + bias), the identity at first. SOURCE: Gao et al., arXiv:2304.15010, eq. 5.

    Args:
        width: of y.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(width))
        self.scale = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """bias 0, scale 1."""
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.scale)

    def forward(self, output: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return self.scale * (output + self.bias)


class LinearAffines(nn.Module):
    """One `Affine` behind every linear map of the layers; the head has none.

    Args:
        decoder: the language model's layers.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    _key(name): Affine(_width(each))
                    for name, each in linear_maps(layer.module).items()
                }
            )
            for layer in decoder.layers
        )

    def attach(self, decoder: Decoder) -> None:
        """Puts each behind its linear map; call it once, with the decoder it was made for."""
        for layer, affines in zip(decoder.layers, self.layers, strict=True):
            assert isinstance(affines, nn.ModuleDict)
            for name, linear in linear_maps(layer.module).items():
                linear.register_forward_hook(_Behind(affines[_key(name)]))

    @torch.no_grad()
    def merge_into(self, decoder: Decoder) -> None:
        """Folds each into a linear map that it is not attached to, in place; needs whole weights.

        y = scale * (W x + b + bias) is a linear map again, with a bias.
        """
        for layer, affines in zip(decoder.layers, self.layers, strict=True):
            assert isinstance(affines, nn.ModuleDict)
            for name, linear in linear_maps(layer.module).items():
                affine: Any = affines[_key(name)]
                weight: Any = linear.weight
                rows = weight.T if isinstance(linear, Conv1D) else weight  # (out, in), a view
                old: Any = 0.0 if linear.bias is None else linear.bias
                bias = affine.scale * (old + affine.bias)
                rows.mul_(affine.scale[:, None])
                linear.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)


class _Behind:
    """A forward hook that passes the module's output through another module."""

    def __init__(self, affine: nn.Module) -> None:
        self._affine = affine

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        changed: Tensor = self._affine(output)
        return changed


def norms(llm: PreTrainedModel) -> list[nn.Module]:
    """The normalisations of a language model, the last one included."""
    return [each for each in llm.modules() if type(each).__name__.endswith("Norm")]


def _width(linear: nn.Module) -> int:
    """Of a map's output, also where this rank holds a part of its weight."""
    return int(linear.out_features if isinstance(linear, nn.Linear) else linear.nf)  # type: ignore[arg-type]


def _key(name: str) -> str:
    """A module's name as a name within another module, which must not have dots."""
    return name.replace(".", "_")
