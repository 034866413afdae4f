"""A changed language model as a plain one of its architecture, which transformers itself can load.

What was folded into its weights may have brought biases where there were none; whether an
architecture has a place for them, its own config says (`attention_bias`, `mlp_bias`). Assumes whole
weights, no LoRA left (`lora.merge`).
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

_AutoModel: Any = AutoModelForCausalLM  # transformers leaves it untyped
_FLAGS = ("attention_bias", "mlp_bias")


def make_plain(llm: PreTrainedModel) -> bool:
    """Changes config and biases until both fit, in place; a bias that is missing becomes zero.

    Returns:
        False where the architecture has no place for a bias; nothing is changed then.
    """
    for flags in ((), *((flag,) for flag in _FLAGS), _FLAGS):
        config = copy.deepcopy(llm.config)
        if not all(hasattr(config, flag) for flag in flags):
            continue
        for flag in flags:
            setattr(config, flag, True)
        wanted = _names(config)
        missing, left = wanted - _own_names(llm), _own_names(llm) - wanted
        if left or not all(name.endswith(".bias") for name in missing):
            continue
        for name in missing:
            module: Any = llm.get_submodule(name.removesuffix(".bias"))
            zeros = module.weight.new_zeros(module.weight.shape[0])
            module.bias = nn.Parameter(zeros, requires_grad=False)
        for flag in flags:
            setattr(llm.config, flag, True)
        setter: Any = llm.set_attn_implementation
        setter("sdpa")
        return True
    return False


def _names(config: Any) -> set[str]:
    """Of all parameters of a model of this config."""
    with torch.device("meta"), no_init_weights():
        twin = _AutoModel.from_config(config, trust_remote_code=False, attn_implementation="sdpa")
    return {name for name, _ in twin.named_parameters(remove_duplicate=False)}


def _own_names(llm: PreTrainedModel) -> set[str]:
    return {name for name, _ in llm.named_parameters(remove_duplicate=False)}
