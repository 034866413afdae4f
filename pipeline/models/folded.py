"""LaVIN's language model with its adapters folded in, as a plain model of transformers.

For rows of one modality, because the adapters' routing differs between them. It has no hooks, no
modality token and no attention of ours, so any library that loads transformers' folders runs it.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from pipeline.errors import ConfigError
from pipeline.models.lavin_model import Lavin
from pipeline.models.lora import merge

_AutoModel: Any = AutoModelForCausalLM  # transformers leaves it untyped


def folded_llm(model: Lavin, *, has_image: bool) -> PreTrainedModel:
    """The language model that says of rows of one modality what `model` says.

    Args:
        model: whole; used up: its weights are changed.
        has_image: for rows with an image; their embeddings go in as `inputs_embeds`.

    Raises:
        ConfigError: transformers' model has no bias where an adapter becomes one (mistral).
    """
    merge(model.llm)
    model.fold(has_image)
    llm = model.llm
    plain = _plain(llm)
    _add_missing_biases(llm, plain)
    plain.load_state_dict(llm.state_dict(), assign=True)
    plain.tie_weights()
    positions = getattr(plain.base_model, "wpe", None)
    if isinstance(positions, nn.Embedding):
        # The modality token had place 0. Rotary positions are relative, learnt ones are not.
        with torch.no_grad():
            positions.weight[:-1] = positions.weight[1:].clone()
    return plain


def _plain(llm: PreTrainedModel) -> PreTrainedModel:
    """Transformers' own model of the same sizes, with a bias in its attention, without values."""
    config: Any = copy.deepcopy(llm.config)
    if hasattr(config, "attention_bias"):
        config.attention_bias = True
    with torch.device("meta"), no_init_weights():
        plain: PreTrainedModel = _AutoModel.from_config(
            config, dtype=llm.dtype, attn_implementation="sdpa"
        )
    names = {name for name, _ in plain.named_parameters()}
    if strange := [name for name, _ in llm.named_parameters() if name not in names]:
        raise ConfigError(
            f"export.fold: a {config.model_type} of transformers has no {strange[0]}, which "
            "folding adds; score this model with evaluate, or build LaVIN on a llama or qwen"
        )
    return plain


def _add_missing_biases(llm: PreTrainedModel, plain: PreTrainedModel) -> None:
    """Zeros for the biases that come along with those that folding needs."""
    there = {name for name, _ in llm.named_parameters()}
    for name, parameter in plain.named_parameters():
        if name not in there:
            place, _, key = name.rpartition(".")
            zeros = torch.zeros(parameter.shape, dtype=parameter.dtype)
            setattr(llm.get_submodule(place), key, nn.Parameter(zeros, requires_grad=False))
