"""The ClipCap family: image feature -> prefix embeddings -> caption, and how a row is laid out.

A row is k image slots, the caption's tokens and EOS; captions, EOS included, are the targets. The
reference has no EOS and never trains token id 0; here both are ordinary targets. Assumes one image
for a row; which parts train is the phase's business.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PretrainedConfig

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.models.encoder import ImageEncoder, load_image_encoder
from pipeline.models.llm import context_length, llm_width, load_llm, load_llm_config
from pipeline.models.multimodal import IGNORE, IMAGE_SLOT, MultimodalLM
from pipeline.models.placement import Placement, fill, reset_parameters
from pipeline.models.st import build_st

SEES_IMAGES = True


class ClipCap(MultimodalLM):
    """Mapper and language model over a CLIP feature. SOURCE: ClipCap train.py:220-258."""


def build(
    cfg: Config,
    *,
    dtype: torch.dtype,
    placement: Placement,
    with_encoder: bool,
    feature_width: int | None = None,
    encoder: ImageEncoder | None = None,
) -> ClipCap:
    """The model of a recipe: pretrained language model, freshly initialised ST network.

    Args:
        cfg: the recipe.
        dtype: of all parameters, the encoder's included.
        placement: how the parameters of the ST network and the language model come into being.
        with_encoder: whether the model holds the image tower; without, features are always given.
        feature_width: C, of the features; needed only without the encoder.
        encoder: a tower that is loaded already; otherwise the recipe's is.

    Returns:
        The model; which of it trains is not decided here.

    Raises:
        ConfigError: the sizes do not fit together, or the language model cannot be loaded.
        CheckpointError: the language model's weights are not its own.
    """
    config = load_llm_config(cfg.llm)
    check(cfg, config)
    if not with_encoder:
        encoder = None
    elif encoder is None:
        encoder, _ = load_image_encoder(cfg.encoder, seed=cfg.seed)
    width = feature_width if encoder is None else encoder.width
    if width is None:
        raise ValueError("feature_width is needed without an encoder")
    with placement.skeleton():
        st = build_st(cfg.st, width=width, llm_width=llm_width(config))
    fill(st, lambda name: None, placement, seed=cfg.seed, init=reset_parameters)
    llm = load_llm(cfg.llm, dtype=dtype, placement=placement, seed=cfg.seed)
    return ClipCap(None if encoder is None else encoder.to(dtype), st.to(dtype), llm)


def check(cfg: Config, config: PretrainedConfig) -> None:
    """Compares the recipe's lengths with the language model's context, before anything is loaded.

    Raises:
        ConfigError: a training row or a generated caption would be longer than the context.
    """
    limit = context_length(config)
    if limit is None:
        return
    for key, tokens in (
        ("data.max_tokens", cfg.data.max_tokens),
        ("evaluate.max_new_tokens", cfg.evaluate.max_new_tokens),
    ):
        room = limit - cfg.st.prefix_length
        if tokens > room:
            remedy = f"at most {room} fit" if room > 0 else "make the prefix shorter"
            raise ConfigError(
                f"{key}: {tokens} tokens after a prefix of {cfg.st.prefix_length} "
                f"(st.prefix_length) exceed the language model's context of {limit}; {remedy}"
            )


def prompt_ids(cfg: Config) -> list[int]:
    """What comes before the caption, in training and in generation: k image slots."""
    return [IMAGE_SLOT] * cfg.st.prefix_length


def row(cfg: Config, caption_ids: Sequence[int], eos_id: int) -> tuple[list[int], list[int]]:
    """One training row.

    Args:
        cfg: the recipe.
        caption_ids: the caption's tokens without EOS, cut by the caller.
        eos_id: of the language model's tokenizer.

    Returns:
        input_ids and labels of equal length, not padded.
    """
    prompt = prompt_ids(cfg)
    targets = [*caption_ids, eos_id]
    return [*prompt, *targets], [*([IGNORE] * len(prompt)), *targets]


def parts(model: MultimodalLM) -> dict[str, nn.Module]:
    """The parts a phase can train or freeze, by name; no encoder where features are given."""
    found: dict[str, nn.Module] = {"st": model.st, "llm": model.llm}
    return found if model.encoder is None else {"encoder": model.encoder, **found}
