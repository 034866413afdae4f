"""The LaVIN family: how it is built, how a row is laid out, and what of it can train.

A row is BOS, "Image: " and k image slots or "Image: N/A", the prompt, and the answer with EOS; the
modality token before it is the model's business (`lavin_model.py`). Text tokens come in tokenised;
what is too long was shortened before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from pipeline.config import Config, MMAdapterConfig
from pipeline.errors import ConfigError
from pipeline.models.adapters import GROUPS
from pipeline.models.decoder import check_decoder
from pipeline.models.encoder import ImageEncoder, load_image_encoder
from pipeline.models.lavin_model import LanguageAdapters, Lavin
from pipeline.models.llm import context_length, llm_width, load_llm, load_llm_config
from pipeline.models.multimodal import IMAGE_SLOT, MultimodalLM
from pipeline.models.placement import WHOLE, Placement, fill, reset_parameters
from pipeline.models.st import VisualProjection
from pipeline.models.tower import (
    IMAGE_FEATURES,
    AdaptedTower,
    chosen_layers,
    make_tower_adapters,
    tower_blocks,
)

_MOST_OPENING = 12  # tokens of BOS and "Image: N/A", whatever the tokenizer


@dataclass(frozen=True)
class Layout:
    """The tokens before a prompt. SOURCE: LaVIN lavin/model.py:259-310."""

    opening: tuple[int, ...]  # BOS, where the tokenizer has one
    image: tuple[int, ...]  # "Image: ", before the slots
    no_image: tuple[int, ...]  # "Image: N/A"
    slots: int  # k, of one image

    def __call__(self, prompt_ids: Sequence[int], has_image: bool) -> list[int]:
        """All that stands in a row before its target."""
        if has_image:
            return [*self.opening, *self.image, *[IMAGE_SLOT] * self.slots, *prompt_ids]
        return [*self.opening, *self.no_image, *prompt_ids]


def sees_images(cfg: Config) -> bool:
    """Always."""
    return True


def slots(cfg: Config) -> int:
    """Places that an image takes in a row: one for each chosen layer of the tower."""
    return len(cfg.lavin.image_layers) or IMAGE_FEATURES


def layout(cfg: Config, tokenizer: PreTrainedTokenizerBase) -> Layout:
    """The layout in a tokenizer's tokens; see `clipcap.layout`."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    bos = tokenizer.bos_token_id
    opening = () if bos is None else (int(bos),)
    return Layout(opening, ids("Image: "), ids("Image: N/A"), slots(cfg))


def build(
    cfg: Config,
    *,
    dtype: torch.dtype,
    placement: Placement,
    with_encoder: bool,
    feature_width: int | None = None,
    encoder: ImageEncoder | None = None,
) -> Lavin:
    """The model of a recipe: pretrained tower and language model, fresh adapters and projection.

    Args, raises: as `clipcap.build`; also ConfigError for a language model or a tower that adapters
    cannot be put into. An `encoder` without adapters gets them.
    """
    config = load_llm_config(cfg.llm)
    check(cfg, config)
    adapted = None
    if with_encoder:
        encoder = encoder or load_image_encoder(cfg.encoder, seed=cfg.seed)[0]
        adapted = encoder if isinstance(encoder, AdaptedTower) else tower(cfg, encoder)
    width = feature_width if adapted is None else adapted.width
    if width is None:
        raise ValueError("feature_width is needed without an encoder")
    depth, hidden = config.get_text_config().num_hidden_layers, llm_width(config)
    with placement.skeleton():
        st = VisualProjection(width, cfg.lavin.visual_hidden, hidden)
        adapters = LanguageAdapters(depth, hidden, cfg.lavin.adapter)
    for part in (st, adapters):
        fill(part, lambda name: None, placement, seed=cfg.seed, init=reset_parameters)
    llm = load_llm(cfg.llm, dtype=dtype, placement=placement, seed=cfg.seed)
    return Lavin(
        None if adapted is None else adapted.to(dtype), st.to(dtype), llm, adapters.to(dtype)
    )


def tower(cfg: Config, encoder: ImageEncoder, placement: Placement = WHOLE) -> AdaptedTower:
    """A recipe's tower with fresh adapters, the same on every rank, whole like the tower itself.

    Args: as `clipcap.tower`; the tower's blocks get hooks.

    Raises:
        ConfigError: the tower is no vision transformer, or lacks one of `lavin.image_layers`; keys
            of other families' towers are set; adapters that cannot be.
    """
    _check_adapter(cfg.lavin.adapter)
    if list(cfg.encoder.scales) != [1] or cfg.encoder.normalize:
        key = "normalize=true" if cfg.encoder.normalize else f"scales={list(cfg.encoder.scales)}"
        raise ConfigError(
            f"encoder.{key}: family=lavin reads the blocks of the tower (lavin.image_layers), at "
            "its own size and as they are; leave encoder.scales and encoder.normalize out"
        )
    layers = chosen_layers(cfg.lavin.image_layers, len(tower_blocks(encoder.visual).blocks))
    with placement.skeleton():
        adapters = make_tower_adapters(encoder.visual, cfg.lavin.adapter)
    fill(adapters, lambda name: None, placement, seed=cfg.seed, init=reset_parameters)
    return AdaptedTower(encoder.visual, layers, adapters, cfg.lavin.routing).eval()


def check(cfg: Config, config: PretrainedConfig) -> None:
    """Compares the recipe with the language model's config, before anything is loaded.

    Raises:
        ConfigError: an architecture that is not known, rows longer than its context, or adapters
            that cannot be.
    """
    check_decoder(config)
    _check_adapter(cfg.lavin.adapter)
    limit = context_length(config)
    # Before a caption's tokens stand the image's; other tasks count a row whole.
    before = 1 + slots(cfg) + _MOST_OPENING if cfg.data.task == "captions" else 1
    if limit is not None and cfg.data.max_tokens + before > limit:
        raise ConfigError(
            f"data.max_tokens: {cfg.data.max_tokens} tokens and the {before} that may come before "
            f"them exceed the context of {limit} of {cfg.llm.path}; at most {limit - before} fit"
        )


def _check_adapter(adapter: MMAdapterConfig) -> None:
    if adapter.hidden % GROUPS:
        raise ConfigError(
            f"lavin.adapter.hidden: {adapter.hidden} cannot be cut into {GROUPS} groups; "
            f"set it to a multiple of {GROUPS}"
        )
    if adapter.dropout >= 1:
        raise ConfigError(
            f"lavin.adapter.dropout: {adapter.dropout} would drop everything; set it below 1"
        )


def parts(model: MultimodalLM) -> dict[str, nn.Module]:
    """The parts a phase can train or freeze, by name; no parameter is in two of them."""
    assert isinstance(model, Lavin)
    found = {"st": model.st, "llm": model.llm, "adapters": model.adapters}
    if isinstance(model.encoder, AdaptedTower):
        towers = {"encoder": model.encoder.visual, "encoder_adapters": model.encoder.adapters}
        return {**towers, **found}
    return found


def trains(cfg: Config, phase: str) -> tuple[str, ...]:
    """The parts that st_align trains, or llm_tune where the recipe does not say: as the reference.

    SOURCE: LaVIN mm_adaptation.py:121-133, whatever has "adapter" in its name.
    """
    return ("st",) if phase == "st_align" else ("encoder_adapters", "st", "adapters")
