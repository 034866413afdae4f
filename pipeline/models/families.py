"""The model families by their name in a recipe; a family is a module with the functions below.

Assumes nothing about a family but this protocol; a new family is one file and one line here (its
name and parts stand in `config.PARTS`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from pipeline.config import Config
from pipeline.errors import CheckpointError, ConfigError
from pipeline.models import clipcap, lavin, llama_adapter, text
from pipeline.models.encoder import ImageEncoder
from pipeline.models.multimodal import MultimodalLM
from pipeline.models.placement import Placement

# A prompt's ids, and whether there is an image -> all that stands in a row before its target.
Layout = Callable[[Sequence[int], bool], list[int]]

_TRAINING = (".dropout", ".disjoint")  # keys of a family that change nothing once it is trained


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


def check_made_with(made_with: Mapping[str, Any] | None, cfg: Config, where: object) -> None:
    """Compares what an export's adapters were made with to the recipe's; no shape tells of most.

    Args:
        made_with: the `family` of the export's JSON, `added_by` of its recipe; None for an export
            without a family's own tensors.
        cfg: the recipe.
        where: the export, for the message.

    Raises:
        CheckpointError: of the same family, and another model all the same.
    """
    ours = added_by(cfg)
    if made_with is None or made_with.get("family") != cfg.family:
        return  # tensors of another family are found by their names
    other = [key for key, value in made_with.items() if ours.get(key) != value]
    if other:
        wanted = " ".join(f"{key}={_as_argument(made_with[key])}" for key in other)
        raise CheckpointError(
            f"{where} was made with {wanted}, which this recipe does not say; set that, or name "
            "another export"
        )


def _as_argument(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def added_by(cfg: Config) -> dict[str, object]:
    """The family and its keys as they stand in a recipe, but for what only training knows."""
    found: dict[str, object] = {"family": cfg.family}
    for key, value in family_settings(cfg).items():
        inner = value if isinstance(value, dict) else {"": value}
        names = {f"{cfg.family}.{key}.{each}".rstrip("."): inner[each] for each in inner}
        found |= {name: each for name, each in names.items() if not name.endswith(_TRAINING)}
    return found


def is_added(name: str) -> bool:
    """Whether an exported tensor is one that a family adds to its base models."""
    return name.startswith(("encoder.adapters.", "adapters.", "adaption.", "affine."))
