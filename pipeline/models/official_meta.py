"""LLaMA weights as Meta publishes them: `params.json` beside `consolidated.NN.pth`.

One file a shard of model parallelism (13B has two); a tensor's parts lie in all of them. They are
mapped into memory and read with weights_only, one tensor at a time, so no shard is ever held. What
it assumes: the layout of LLaMA 1 to 3 without scaled RoPE; the tokenizer is not read here.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from pipeline.errors import CheckpointError, ConfigError

PARAMS = "params.json"

_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.weight")
# Computed by every implementation anew; LLaMA 1 and 2 carry it along.
_COMPUTED = "rope.freqs"


def rename(name: str) -> str | None:
    """Meta's name of a tensor -> transformers'; None for one that LLaMA does not have."""
    if name in _NAMES:
        return _NAMES[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _IN_LAYER:
        return None
    return f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}.weight"
