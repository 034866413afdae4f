"""The family without an image: a language model alone, to make small ones from scratch.

A row is EOS, the text's tokens and EOS; EOS opens a text as it does in GPT-2's own training, so the
first token is learnt too. There is no encoder and no ST network.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.models.encoder import ImageEncoder
from pipeline.models.llm import context_length, load_llm, load_llm_config
from pipeline.models.multimodal import MultimodalLM
from pipeline.models.placement import WHOLE, Placement


def build(
    cfg: Config,
    *,
    dtype: torch.dtype,
    placement: Placement,
    with_encoder: bool,
    feature_width: int | None = None,
    encoder: ImageEncoder | None = None,
) -> MultimodalLM:
    """The language model as a multimodal one that never sees an image; see `clipcap.build`."""
    check(cfg, load_llm_config(cfg.llm))
    llm = load_llm(cfg.llm, dtype=dtype, placement=placement, seed=cfg.seed)
    return MultimodalLM(None, nn.Identity(), llm)


def check(cfg: Config, config: PretrainedConfig) -> None:
    """ConfigError when a text with its opening EOS is longer than the model's context."""
    limit = context_length(config)
    if limit is not None and cfg.data.max_tokens + 1 > limit:
        raise ConfigError(
            f"data.max_tokens: {cfg.data.max_tokens} tokens and the EOS before them exceed the "
            f"context of {limit} of {cfg.llm.path}; at most {limit - 1} fit"
        )


def tower(cfg: Config, encoder: ImageEncoder, placement: Placement = WHOLE) -> ImageEncoder:
    """There is none to look through; see `clipcap.tower`."""
    return encoder


def sees_images(cfg: Config) -> bool:
    """Never."""
    return False


def slots(cfg: Config) -> int:
    """An image takes no place."""
    return 0


def layout(
    cfg: Config, tokenizer: PreTrainedTokenizerBase
) -> Callable[[Sequence[int], bool], list[int]]:
    """EOS and the prompt, whatever the record shows; see `clipcap.layout`."""
    return partial(_before, int(tokenizer.eos_token_id))


def _before(eos_id: int, prompt_ids: Sequence[int], has_image: bool) -> list[int]:
    return [eos_id, *prompt_ids]


def parts(model: MultimodalLM) -> dict[str, nn.Module]:
    """The language model is all there is."""
    return {"llm": model.llm}


def trains(cfg: Config, phase: str) -> tuple[str, ...]:
    """The language model."""
    return ("llm",)
