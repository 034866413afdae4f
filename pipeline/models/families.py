"""The model families by their name in a recipe; a family is a module with the functions below.

Assumes nothing about a family but this protocol; a new family is one file and one line here.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import torch
from torch import nn
from transformers import PretrainedConfig

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.models import clipcap, text
from pipeline.models.encoder import ImageEncoder
from pipeline.models.multimodal import MultimodalLM
from pipeline.models.placement import Placement


class Family(Protocol):
    """What a family's module offers; `clipcap` documents each."""

    SEES_IMAGES: bool

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

    def prompt_ids(self, cfg: Config) -> list[int]:
        """What comes before the text."""

    def row(
        self, cfg: Config, caption_ids: Sequence[int], eos_id: int
    ) -> tuple[list[int], list[int]]:
        """input_ids and labels of one training row."""

    def parts(self, model: MultimodalLM) -> dict[str, nn.Module]:
        """The parts a phase can train or freeze, by name."""


FAMILIES: Mapping[str, Family] = MappingProxyType({"clipcap": clipcap, "text": text})


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
