"""A frozen language model whose linear maps are held in 8 or 4 bits, through bitsandbytes.

8 bits are LLM.int8() (Dettmers et al., 2022); 4 bits are QLoRA's NF4 with double quantisation
(Dettmers et al., 2023), computed in the recipe's dtype. Embeddings, norms and the output head stay
in that dtype, and whatever trains beside the weights does. transformers quantises, tensor by tensor
on this process's device; it assumes that no rank holds less than the whole model (ZeRO below 3).
"""

import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils.import_utils import is_bitsandbytes_available

from pipeline.config import LLMConfig
from pipeline.errors import ConfigError
from pipeline.models.linear import linear_maps
from pipeline.models.lora import is_adapter
from pipeline.models.official_meta import MetaWeights, is_meta_folder
from pipeline.models.whole import load_whole

NONE = "none"
_BLOCK, _OUTER_BLOCK = 64, 256  # QLoRA: values that share a scale, scales that share one

_BitsAndBytesConfig: Any = BitsAndBytesConfig  # transformers leaves its constructor untyped


def check_quantization(cfg: LLMConfig) -> None:
    """Raises ConfigError where bitsandbytes is missing, or older than transformers needs."""
    if cfg.quantize != NONE and not is_bitsandbytes_available():
        raise ConfigError(
            f"llm.quantize={cfg.quantize}: bitsandbytes is not installed, or too old; "
            "pip install -U bitsandbytes, or set llm.quantize=none"
        )


def load_quantized(cfg: LLMConfig, like: PreTrainedModel) -> PreTrainedModel:
    """The recipe's language model with quantised linear maps, on this process's device.

    Args:
        cfg: with `quantize` other than none.
        like: the model without values; in its dtype is what is not quantised, and what is computed.

    Raises:
        ConfigError: bitsandbytes is missing.
        CheckpointError: as `load_whole`.
    """
    check_quantization(cfg)
    settings = _BitsAndBytesConfig(
        load_in_8bit=cfg.quantize == "8bit",
        load_in_4bit=cfg.quantize == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=like.dtype,
    )
    tensors = None
    if is_meta_folder(cfg.path):
        meta = MetaWeights(Path(cfg.path))
        tensors = {name: _there(meta, name) for name in meta.shapes}
    model = load_whole(cfg, like, tensors=tensors, quantization_config=settings)
    if cfg.quantize == "4bit":
        _mind_cpus(model)
    return model


def _mind_cpus(model: PreTrainedModel) -> None:
    """What 4-bit weights need on CPUs, as of bitsandbytes 0.50.2.

    Raises ConfigError where its kernels would read the scales of other rows.
    """
    for name, each in linear_maps(model).items():
        weight: Any = each.weight
        if weight.device.type != "cpu":
            return
        width = int(weight.quant_state.shape[1])
        if width % _BLOCK:
            raise ConfigError(
                f"llm.quantize=4bit: {name} reads {width} numbers, and on CPUs bitsandbytes "
                f"computes wrongly unless they are a multiple of {_BLOCK}; use 8bit, or a GPU"
            )
        # With AVX512-BF16, a forward pass without gradients would order the weights anew in a way
        # that the backward pass does not know: wrong gradients after the first validation.
        each.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def is_quantized(parameter: Tensor) -> bool:
    """Whether a parameter holds codes in place of its values."""
    return not parameter.is_floating_point()


def quantized_sizes(model: nn.Module, quantize: str) -> tuple[int, float]:
    """Elements of a model that `quantize` holds in few bits, and the bytes that they take.

    Args:
        model: the language model as it is without it, may be on the meta device or have adapters.
        quantize: a value of `llm.quantize`.
    """
    if quantize == NONE:
        return 0, 0.0
    shapes = [_shape(each) for each in _own_maps(model)]
    elements = sum(math.prod(shape) for shape in shapes)
    return elements, sum(_bytes(shape, quantize) for shape in shapes)


def kept_inputs(model: nn.Module, quantize: str) -> list[nn.Module]:
    """The linear maps that keep their input for the backward pass although they are frozen.

    SOURCE: bitsandbytes autograd/_functions.py, MatMul8bitLt; MatMul4Bit keeps its weight alone.
    """
    return _own_maps(model) if quantize == "8bit" else []


def _own_maps(model: nn.Module) -> list[nn.Module]:
    return [each for name, each in linear_maps(model).items() if not is_adapter(f"{name}.")]


def _bytes(shape: tuple[int, ...], quantize: str) -> float:
    """Codes and scales of one linear map."""
    elements = math.prod(shape)
    if quantize == "8bit":
        return elements + 4 * shape[0]  # a float32 scale for each output
    scales = math.ceil(elements / _BLOCK)  # of 8 bits
    tables = 4 * (16 + 256 + 1)  # what codes and scales mean, and the scales' mean
    return math.ceil(elements / 2) + scales + 4 * math.ceil(scales / _OUTER_BLOCK) + tables


def _shape(linear: nn.Module) -> tuple[int, ...]:
    weight: Any = linear.weight
    shape = tuple(weight.shape)
    return shape if isinstance(linear, nn.Linear) else shape[::-1]


def _there(tensors: MetaWeights, name: str) -> Tensor:
    found = tensors(name)
    assert found is not None  # the names are its own
    return found
