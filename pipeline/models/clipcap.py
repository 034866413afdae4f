"""The ClipCap family: image feature -> prefix embeddings -> caption, and how a row is laid out.

A row is k image slots, a prompt if there is one, the caption's tokens and EOS; captions, EOS
included, are the targets. The reference has no EOS and never trains token id 0; here both are
ordinary targets. Assumes one image at most for a row; which parts train is the phase's business.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.models.encoder import ImageEncoder, load_image_encoder
from pipeline.models.llm import context_length, llm_width, load_llm, load_llm_config
from pipeline.models.multimodal import IMAGE_SLOT, MultimodalLM
from pipeline.models.placement import WHOLE, Placement, fill, reset_parameters
from pipeline.models.st import build_st


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


def tower(cfg: Config, encoder: ImageEncoder, placement: Placement = WHOLE) -> ImageEncoder:
    """The image tower as this family looks through it: as it is.

    Args:
        cfg: the recipe.
        encoder: the recipe's tower; may be changed in place.
        placement: how what is added to it comes into being.
    """
    return encoder


def sees_images(cfg: Config) -> bool:
    """Whether there is an image tower and an ST network: always."""
    return True


def slots(cfg: Config) -> int:
    """Places that an image takes in a row: k."""
    return cfg.st.prefix_length


def layout(
    cfg: Config, tokenizer: PreTrainedTokenizerBase
) -> Callable[[Sequence[int], bool], list[int]]:
    """What stands in a row before its target, in training and in generation.

    Returns:
        A function of the prompt's ids (none for a caption) and whether there is an image: here k
        slots, then the prompt.
    """
    return partial(_before, cfg.st.prefix_length)


def _before(slots: int, prompt_ids: Sequence[int], has_image: bool) -> list[int]:
    return [*[IMAGE_SLOT] * (slots * has_image), *prompt_ids]


def parts(model: MultimodalLM) -> dict[str, nn.Module]:
    """The parts a phase can train or freeze, by name; no encoder where features are given."""
    found: dict[str, nn.Module] = {"st": model.st, "llm": model.llm}
    return found if model.encoder is None else {"encoder": model.encoder, **found}


def trains(cfg: Config, phase: str) -> tuple[str, ...]:
    """The parts that st_align trains, or llm_tune where the recipe does not say."""
    return ("st",) if phase == "st_align" else ("st", "llm")
