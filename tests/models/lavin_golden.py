"""The reference's tiny LaVIN with its weights in our model, for the tests that need its numbers."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.config import MMAdapterConfig
from pipeline.models.lavin_model import LanguageAdapters, Lavin
from pipeline.models.multimodal import IMAGE_SLOT
from pipeline.models.official_lavin import rename
from pipeline.models.st import VisualProjection
from pipeline.models.tower import AdaptedTower, make_tower_adapters

GOLDEN = Path(__file__).parents[1] / "golden"
_LAYER = {  # Meta's names -> transformers'
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


def read(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["config"])


def behind(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def model() -> Lavin:
    """The golden model; routing per token, as the reference does with one image."""
    tensors, sizes = read("lavin_image")
    weights = behind("weight.", tensors)
    adapter = sizes["adapter"]
    cfg = MMAdapterConfig(
        adapter["dim"], scale=adapter["scale"], temperature=adapter["temperature"]
    )
    vision, dim = sizes["vision"], sizes["llm"]["dim"]
    layers = range(vision["every"], vision["layers"] + 1, vision["every"])
    visual = _tower(weights, vision)
    tower = AdaptedTower(visual, layers, make_tower_adapters(visual, cfg), "token")
    st = VisualProjection(vision["width"], adapter["visual_hidden"], dim)
    adapters = LanguageAdapters(sizes["llm"]["n_layers"], dim, cfg)
    made = Lavin(tower, st, _llama(weights, sizes["llm"]), adapters)
    ours, _ = rename(weights)
    parameters = dict(made.named_parameters())
    with torch.no_grad():
        for name, value in ours.items():
            parameters[name].copy_(value)
    return made.eval()


def row(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file's one row as our model takes it, without the modality token.

    `labels` are the reference's, which it shifts by itself; 0 is none.
    """
    has_image = bool(tensors["input.has_image"])
    prefix = tensors[f"input.prefix_{'image' if has_image else 'no_image'}_tokens"].tolist()
    slots = [IMAGE_SLOT] * tensors["output.image_embeds"].shape[1] if has_image else []
    tokens, labels = tensors["input.tokens"][0].tolist(), tensors["input.labels"][0].tolist()
    length = len(tokens) - 1  # the reference cuts to the tokens' length with the modality token
    ids = [tokens[0], *prefix, *slots, *tokens[1:]][:length]
    found = {
        "image_rows": torch.tensor([0 if has_image else -1]),
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, length, dtype=torch.long),
        "labels": torch.tensor([[0, *[0] * len(prefix + slots), *labels[1:]][:length]]),
    }
    return found | ({"images": tensors["input.images"]} if has_image else {})


def _tower(weights: dict[str, Tensor], sizes: dict[str, Any]) -> nn.Module:
    visual = open_clip.transformer.VisionTransformer(
        image_size=sizes["resolution"],
        patch_size=sizes["patch"],
        width=sizes["width"],
        layers=sizes["layers"],
        heads=sizes["heads"],
        mlp_ratio=4.0,
        output_dim=weights["backbone.visual.proj"].shape[1],
        act_layer=open_clip.transformer.QuickGELU,
    )
    base = behind("backbone.visual.", weights)
    visual.load_state_dict({k: v for k, v in base.items() if "adapter" not in k})
    return visual


def _llama(weights: dict[str, Tensor], sizes: dict[str, Any]) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=sizes["dim"],
        num_hidden_layers=sizes["n_layers"],
        num_attention_heads=sizes["n_heads"],
        vocab_size=sizes["vocab_size"],
        intermediate_size=sizes["ffn_dim"],
        rms_norm_eps=sizes["norm_eps"],
        rope_theta=sizes["rope_theta"],
    )
    named = {
        "model.embed_tokens.weight": weights["tok_embeddings.weight"],
        "model.norm.weight": weights["norm.weight"],
        "lm_head.weight": weights["output.weight"],
    }
    for i in range(sizes["n_layers"]):
        for theirs, ours in _LAYER.items():
            value = weights[f"layers.{i}.{theirs}.weight"]
            if theirs in ("attention.wq", "attention.wk"):
                value = half_split(value, sizes["n_heads"])
            named[f"model.layers.{i}.{ours}.weight"] = value
    llm = LlamaForCausalLM(config)
    llm.load_state_dict(named)
    return llm


def half_split(weight: Tensor, heads: int) -> Tensor:
    """RoPE's pairs from neighbours, as Meta stores them, to halves, as transformers does."""
    rows, columns = weight.shape
    pairs = weight.view(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)
