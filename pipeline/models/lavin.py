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

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.models.adapters import GROUPS
from pipeline.models.decoder import check_decoder
from pipeline.models.encoder import ImageEncoder, load_image_encoder
from pipeline.models.lavin_model import LanguageAdapters, Lavin
from pipeline.models.llm import context_length, llm_width, load_llm, load_llm_config
from pipeline.models.multimodal import IGNORE, IMAGE_SLOT, MultimodalLM
from pipeline.models.placement import Placement, fill, reset_parameters
from pipeline.models.st import VisualProjection
from pipeline.models.tower import AdaptedTower, chosen_layers, make_tower_adapters, tower_blocks

SEES_IMAGES = True


@dataclass(frozen=True)
class Layout:
    """The tokens around a prompt. SOURCE: LaVIN lavin/model.py:259-310."""

    opening: tuple[int, ...]  # BOS, where the tokenizer has one
    image: tuple[int, ...]  # "Image: ", before the slots
    no_image: tuple[int, ...]  # "Image: N/A"
    slots: int  # k, of one image

    def prompt(self, prompt_ids: Sequence[int], *, has_image: bool) -> list[int]:
        """What the model is given before it answers."""
        if has_image:
            return [*self.opening, *self.image, *[IMAGE_SLOT] * self.slots, *prompt_ids]
        return [*self.opening, *self.no_image, *prompt_ids]

    def row(
        self, prompt_ids: Sequence[int], answer_ids: Sequence[int], eos_id: int, *, has_image: bool
    ) -> tuple[list[int], list[int]]:
        """input_ids and labels of one training row; the answer and EOS are the targets."""
        before = self.prompt(prompt_ids, has_image=has_image)
        targets = [*answer_ids, eos_id]
        return [*before, *targets], [*[IGNORE] * len(before), *targets]


def layout(tokenizer: PreTrainedTokenizerBase, slots: int) -> Layout:
    """The layout in a tokenizer's tokens.

    slots: features of an image, as many as `AdaptedTower.layers`.
    """

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    bos = tokenizer.bos_token_id
    opening = () if bos is None else (int(bos),)
    return Layout(opening, ids("Image: "), ids("Image: N/A"), slots)


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
    tower = None
    if with_encoder:
        encoder = encoder or load_image_encoder(cfg.encoder, seed=cfg.seed)[0]
        tower = encoder if isinstance(encoder, AdaptedTower) else adapt_tower(cfg, encoder)
    width = feature_width if tower is None else tower.width
    if width is None:
        raise ValueError("feature_width is needed without an encoder")
    depth, hidden = config.get_text_config().num_hidden_layers, llm_width(config)
    with placement.skeleton():
        st = VisualProjection(width, cfg.lavin.visual_hidden, hidden)
        adapters = LanguageAdapters(depth, hidden, cfg.lavin.adapter)
    for part in (st, adapters):
        fill(part, lambda name: None, placement, seed=cfg.seed, init=reset_parameters)
    llm = load_llm(cfg.llm, dtype=dtype, placement=placement, seed=cfg.seed)
    tower = None if tower is None else tower.to(dtype)
    return Lavin(tower, st.to(dtype), llm, adapters.to(dtype))


def adapt_tower(cfg: Config, encoder: ImageEncoder) -> AdaptedTower:
    """A recipe's tower with fresh adapters, the same on every rank, whole like the tower itself.

    Raises:
        ConfigError: the tower is no vision transformer, or lacks one of `lavin.image_layers`.
    """
    layers = chosen_layers(cfg.lavin.image_layers, len(tower_blocks(encoder.visual).blocks))
    adapters = make_tower_adapters(encoder.visual, cfg.lavin.adapter)
    fill(adapters, lambda name: None, Placement(), seed=cfg.seed, init=reset_parameters)
    return AdaptedTower(encoder.visual, layers, adapters, cfg.lavin.routing).eval()


def check(cfg: Config, config: PretrainedConfig) -> None:
    """Compares the recipe with the language model's config, before anything is loaded.

    Raises:
        ConfigError: an architecture that is not known, rows longer than its context, or adapters
            that cannot be.
    """
    check_decoder(config)
    adapter = cfg.lavin.adapter
    if adapter.hidden % GROUPS:
        raise ConfigError(
            f"lavin.adapter.hidden: {adapter.hidden} cannot be cut into {GROUPS} groups; "
            f"set it to a multiple of {GROUPS}"
        )
    if adapter.dropout >= 1:
        raise ConfigError(
            f"lavin.adapter.dropout: {adapter.dropout} would drop everything; set it below 1"
        )
    limit = context_length(config)
    longest = cfg.data.max_tokens + 1
    if limit is not None and longest > limit:
        raise ConfigError(
            f"data.max_tokens: {cfg.data.max_tokens} tokens and the modality token before them "
            f"exceed the context of {limit} of {cfg.llm.path}; at most {limit - 1} fit"
        )


def parts(model: MultimodalLM) -> dict[str, nn.Module]:
    """The parts a phase can train or freeze, by name; no parameter is in two of them."""
    assert isinstance(model, Lavin)
    found = {"st": model.st, "llm": model.llm, "adapters": model.adapters}
    if isinstance(model.encoder, AdaptedTower):
        towers = {"encoder": model.encoder.visual, "encoder_adapters": model.encoder.adapters}
        return {**towers, **found}
    return found
