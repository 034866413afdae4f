"""Writes trained parts as folders and files that other libraries load without this project.

A language model in transformers' format, an image-text model in open_clip's, and the ST network as
safetensors beside a JSON that says how to build it. Weights are float32. Reading them back is those
libraries' business (`load_llm` and `load_clip` do it too).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config import EncoderConfig, STConfig
from pipeline.models.encoder import clip_tokenizer
from pipeline.models.encoder_sketch import check_encoder
from pipeline.models.scratch import CLIP_CONFIG, save_clip

ST_WEIGHTS = "st.safetensors"
ST_CONFIG = "st.json"

_GenerationConfig: Any = GenerationConfig  # transformers leaves its constructor untyped


def write_llm(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A folder for transformers' `from_pretrained`; tied weights are stored once.

    It generates as it was trained: until EOS, without sampling.
    """
    llm.generation_config = _GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_clip(cfg: EncoderConfig, clip: nn.Module, folder: Path) -> None:
    """A folder for open_clip's `local-dir:FOLDER`.

    Args:
        cfg: what `clip` was made from.
        clip: open_clip's model, both towers.
        folder: made where it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model_cfg: dict[str, Any] = open_clip.get_model_config(cfg.arch)
    if check_encoder(cfg):
        model_cfg["quick_gelu"] = True
    config = {"model_cfg": model_cfg, "preprocess_cfg": open_clip.get_model_preprocess_cfg(clip)}
    (folder / CLIP_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    tokenizer = clip_tokenizer(cfg.arch)
    if hasattr(tokenizer, "save_pretrained"):  # open_clip's own one needs no files
        tokenizer.save_pretrained(folder)
    save_clip(clip, folder)


def write_st(
    cfg: STConfig, tensors: Mapping[str, Tensor], folder: Path, details: Mapping[str, object]
) -> None:
    """`st.safetensors` and `st.json`.

    Args:
        cfg: the recipe's `st`.
        tensors: of the network, by the names that its module gives them.
        folder: where both go.
        details: more to say in the JSON (widths, whether features are normalised).
    """
    save_file({name: each.contiguous() for name, each in tensors.items()}, folder / ST_WEIGHTS)
    content = {**asdict(cfg), **details}
    (folder / ST_CONFIG).write_text(json.dumps(content, indent=2) + "\n")
