"""The model families by their name in a recipe; a family is a module with the functions below.

Assumes nothing about a family but this protocol; a new family is one file and one line here (its
name and parts stand in `config.PARTS`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from types import MappingProxyType
from typing import Protocol

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.models import clipcap, lavin, llama_adapter, text
from pipeline.models.encoder import ImageEncoder
from pipeline.models.multimodal import MultimodalLM
from pipeline.models.placement import Placement

# A prompt's ids, and whether there is an image -> all that stands in a row before its target.
Layout = Callable[[Sequence[int], bool], list[int]]


class Family(Protocol):
    """What a family's module offers; `clipcap` documents each."""

    def sees_images(self, cfg: Config) -> bool:
        """Whether the model has an image tower and an ST network."""

    def tower(self, cfg: Config, encoder: ImageEncoder, placement: Placement = ...) -> ImageEncoder:
        """The image tower as the family looks through it."""

    def build(
        self,
        cfg: Config,
        *,
        dtype: torch.dtype,
        placement: Placement,
        with_encoder: bool,
        feature_width: int | None = None,
        encoder: ImageEncoder | None = None,
    ) -> MultimodalLM:
        """The model of a recipe."""

    def check(self, cfg: Config, config: PretrainedConfig) -> None:
        """Compares the recipe with the language model's config, before anything is loaded."""

    def slots(self, cfg: Config) -> int:
        """Places that an image takes in a row."""

    def layout(self, cfg: Config, tokenizer: PreTrainedTokenizerBase) -> Layout:
        """What stands in a row before its target."""

    def parts(self, model: MultimodalLM) -> dict[str, nn.Module]:
        """The parts a phase can train or freeze, by name."""

    def trains(self, cfg: Config, phase: str) -> tuple[str, ...]:
        """The parts that st_align trains, or llm_tune where the recipe does not say."""


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {"clipcap": clipcap, "lavin": lavin, "llama_adapter": llama_adapter, "text": text}
)


def family(name: str) -> Family:
    """The family of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in FAMILIES:
        raise ConfigError(
            f"family: there is no family {name}; choose one of {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[name]


def family_settings(cfg: Config) -> dict[str, object]:
    """The section of a recipe that bears its family's name; empty where there is none."""
    section = getattr(cfg, cfg.family, None)
    return asdict(section) if is_dataclass(section) and not isinstance(section, type) else {}
