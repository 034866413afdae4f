"""Small models from nothing, for whoever has no weights: a tokenizer, a CLIP, a language model.

They are written in the formats of open_clip and transformers, so that everything else loads them
like real weights. Training them is not done here. A folder counts once its weights are there:
they are written last, and atomically.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from pipeline.config import ScratchConfig
from pipeline.errors import ConfigError

EOS = "<|endoftext|>"
CLIP_WEIGHTS = "open_clip_model.safetensors"
LLM_WEIGHTS = "model.safetensors"
CLIP_CONFIG = "open_clip_config.json"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `texts`; it adds no tokens to a text by itself.

    Args:
        texts: the training texts, read once.
        vocab_size: tokens at most, EOS included; few texts give fewer.

    Returns:
        A tokenizer whose EOS has the highest id (open_clip's default text pooling looks for the
        highest), and pads with it.

    Raises:
        ConfigError: `vocab_size` does not hold the 256 bytes and EOS.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise ConfigError(
            f"pretrain.scratch.vocab_size: {vocab_size} does not hold the {len(alphabet)} bytes "
            f"and EOS; set it to {len(alphabet) + 1} or more"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([EOS])
    return _wrap(tokenizer)


def create_llm(
    folder: Path, cfg: ScratchConfig, tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    """Writes a randomly initialised GPT-2 with its tokenizer, loadable by `load_llm`.

    Args:
        folder: made where it does not exist.
        cfg: sizes; dropout is 0.
        tokenizer: from `train_tokenizer`.
        seed: of the weights.

    Raises:
        ConfigError: `heads` does not divide the width.
    """
    config = _llm_config(cfg, len(tokenizer), int(tokenizer.eos_token_id))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_llm(model, folder)


def create_clip(
    folder: Path, cfg: ScratchConfig, tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    """Writes a randomly initialised ViT CLIP in open_clip's format, loadable by `load_clip`.

    Its copy of the tokenizer appends EOS, whose place the text tower pools.

    Args:
        folder: made where it does not exist; becomes `encoder.arch=local-dir:FOLDER`.
        cfg: sizes.
        tokenizer: from `train_tokenizer`.
        seed: of the weights.

    Raises:
        ConfigError: `heads` does not divide a width, or `patch_size` the image.
    """
    config = _clip_config(cfg, len(tokenizer), int(tokenizer.eos_token_id))
    folder.mkdir(parents=True, exist_ok=True)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, tokenizer.eos_token_id)]
    )
    _wrap(backend).save_pretrained(folder)
    (folder / CLIP_CONFIG).write_text(json.dumps(config, indent=2))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = open_clip.CLIP(**config["model_cfg"])
    save_clip(model, folder)


def write_configs(folder: Path, cfg: ScratchConfig) -> None:
    """Writes the configurations alone into `folder`/clip and `folder`/llm, for sketches.

    With the largest vocabulary that `cfg` allows; the real one depends on the texts.

    Raises:
        ConfigError: the sizes do not fit together.
    """
    for part in ("clip", "llm"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    eos = cfg.vocab_size - 1
    clip = _clip_config(cfg, cfg.vocab_size, eos)
    (folder / "clip" / CLIP_CONFIG).write_text(json.dumps(clip, indent=2))
    _llm_config(cfg, cfg.vocab_size, eos).save_pretrained(folder / "llm")


def save_clip(weights: nn.Module | Mapping[str, Tensor], folder: Path) -> None:
    """Puts an open_clip model's weights, or a state dict of all of them, into its folder."""
    _save(weights, folder / CLIP_WEIGHTS)


def save_llm(weights: nn.Module | Mapping[str, Tensor], folder: Path) -> None:
    """Puts a language model's weights, or a state dict of all of them, into its folder."""
    _save(weights, folder / LLM_WEIGHTS)


def _save(weights: nn.Module | Mapping[str, Tensor], file: Path) -> None:
    """Atomic: another process sees the old file or the new one."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        # safetensors refuses shared memory; a tied parameter is found by any of its names.
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes  # else a view of a flat buffer
        tensors[name] = (
            tensor.detach().cpu().contiguous() if whole else tensor.detach().cpu().clone()
        )
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        save_file(tensors, part, metadata={"format": "pt"})
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _llm_config(cfg: ScratchConfig, vocab_size: int, eos_id: int) -> GPT2Config:
    _check_heads("llm_width", cfg.llm_width, cfg.heads)
    return GPT2Config(
        architectures=[GPT2LMHeadModel.__name__],
        vocab_size=vocab_size,
        n_positions=cfg.context_length,
        n_embd=cfg.llm_width,
        n_layer=cfg.llm_layers,
        n_head=cfg.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=eos_id,
        eos_token_id=eos_id,
    )


def _clip_config(cfg: ScratchConfig, vocab_size: int, eos_id: int) -> dict[str, Any]:
    _check_heads("vision_width", cfg.vision_width, cfg.heads)
    _check_heads("text_width", cfg.text_width, cfg.heads)
    if cfg.image_size % cfg.patch_size:
        raise ConfigError(
            f"pretrain.scratch.patch_size: {cfg.patch_size} does not divide image_size "
            f"{cfg.image_size}; choose a divisor"
        )
    return {
        "model_cfg": {
            "embed_dim": cfg.embed_dim,
            "vision_cfg": {
                "image_size": cfg.image_size,
                "patch_size": cfg.patch_size,
                "width": cfg.vision_width,
                "layers": cfg.vision_layers,
                "head_width": cfg.vision_width // cfg.heads,
            },
            "text_cfg": {
                "context_length": cfg.text_context_length or cfg.context_length,
                "vocab_size": vocab_size,
                "width": cfg.text_width,
                "heads": cfg.heads,
                "layers": cfg.text_layers,
                "pool_type": "eos",
                "eos_id": eos_id,
                "hf_tokenizer_name": "in this folder",  # open_clip reads the folder itself
            },
        },
        "preprocess_cfg": {
            "mean": list(open_clip.OPENAI_DATASET_MEAN),
            "std": list(open_clip.OPENAI_DATASET_STD),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    wrap: Any = PreTrainedTokenizerFast  # transformers leaves its constructor untyped
    wrapped: PreTrainedTokenizerFast = wrap(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=EOS,
        clean_up_tokenization_spaces=False,
    )
    return wrapped


def _check_heads(key: str, width: int, heads: int) -> None:
    if width % heads:
        raise ConfigError(
            f"pretrain.scratch.{key}: {width} is not divisible by heads {heads}; choose a multiple"
        )
