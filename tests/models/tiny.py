"""Tiny models that several tests of this folder build; random weights, no downloads, no dropout."""

from types import MappingProxyType

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline.models.multimodal import IGNORE, IMAGE_SLOT, MultimodalLM
from pipeline.models.st import MLPMapper

VOCAB, WIDTH, FEATURE, PREFIX = 37, 16, 6, 3
GROUPED = {  # grouped-query attention
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}


def gpt2(**changes: object) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "n_positions": 32, "n_embd": WIDTH, "n_layer": 2, "n_head": 2}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    tokens = {"bos_token_id": VOCAB - 1, "eos_token_id": VOCAB - 1}
    config = GPT2Config(**{**sizes, **dropout, **tokens, "initializer_range": 0.3, **changes})
    return GPT2LMHeadModel(config).eval()


def llama(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    config = LlamaConfig(
        **{"vocab_size": VOCAB, **sizes, **heads, "initializer_range": 0.3, **changes}
    )
    return LlamaForCausalLM(config).eval()


def mistral(**changes: object) -> MistralForCausalLM:
    torch.manual_seed(0)
    return MistralForCausalLM(
        MistralConfig(**{**GROUPED, "sliding_window": None, **changes})
    ).eval()


def qwen2(**changes: object) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**{**GROUPED, **changes})).eval()


def qwen3(**changes: object) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**{**GROUPED, "head_dim": 4, **changes})).eval()


def gemma2() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=32,
        final_logit_softcapping=0.5,
        initializer_range=0.3,
    )
    return Gemma2ForCausalLM(config).eval()


# One of each architecture that adapters can be put into.
DECODERS = MappingProxyType(
    {"gpt2": gpt2, "llama": llama, "mistral": mistral, "qwen2": qwen2, "qwen3": qwen3}
)


def multimodal(llm: PreTrainedModel) -> MultimodalLM:
    torch.manual_seed(1)
    return MultimodalLM(None, MLPMapper(FEATURE, PREFIX, WIDTH), llm)


def batch() -> dict[str, torch.Tensor]:
    """Two rows with an image (the second image, then the first), one row of text alone."""
    slots = [IMAGE_SLOT] * PREFIX
    rows = [[*slots, 4, 9, 36], [*slots, 7, 36, 0], [5, 8, 2, 36, 0, 0]]
    masked = [[IGNORE] * PREFIX + [4, 9, 36], [IGNORE] * PREFIX + [7, 36, IGNORE]]
    masked.append([IGNORE, IGNORE, 2, 36, IGNORE, IGNORE])
    torch.manual_seed(2)
    return {
        "features": torch.randn(2, FEATURE),
        "image_rows": torch.tensor([1, 0, -1]),
        "input_ids": torch.tensor(rows),
        "attention_mask": torch.tensor([[1] * 6, [1] * 5 + [0], [1] * 4 + [0] * 2]),
        "labels": torch.tensor(masked),
        "weights": torch.ones(3, 6),
    }
