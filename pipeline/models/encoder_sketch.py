"""What is known of a recipe's image-text model without its weights: whether it can be, its shapes.

Uses open_clip's public interface only. It fetches nothing: what only the hub knows is said to be
unknown. Loading is `encoder.py`'s business.
"""

import difflib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from pipeline.config import EncoderConfig
from pipeline.errors import ConfigError

LOCAL_DIR = "local-dir:"  # open_clip's scheme for a folder with its config and weights
HUB = "hf-hub:"


@dataclass
class ClipSketch:
    """The shapes of an image-text model: on the meta device, to be counted, not run."""

    model: nn.Module
    width: int  # of the pooled, projected features
    image_size: int  # pixels, the longer side
    context_length: int  # tokens


def check_encoder(cfg: EncoderConfig) -> bool:
    """Raises ConfigError where a key cannot be right; whether QuickGELU is needed."""
    if not cfg.scales or min(cfg.scales) < 1 or len(set(cfg.scales)) != len(cfg.scales):
        raise ConfigError(
            f"encoder.scales: {list(cfg.scales)} are no different whole numbers from 1 up; "
            "use [1], or [1, 2] for the image's quarters beside the whole"
        )
    if cfg.arch.startswith(LOCAL_DIR):
        config = Path(cfg.arch.removeprefix(LOCAL_DIR)) / "open_clip_config.json"
        if not config.is_file():
            raise ConfigError(
                f"encoder.arch: {cfg.arch}: there is no {config}; name a folder in open_clip's "
                "format (stages/pretrain.py makes one)"
            )
        if not any(any(config.parent.glob(f"*{end}")) for end in (".safetensors", ".bin", ".pth")):
            raise ConfigError(
                f"encoder.arch: {cfg.arch}: no weights in that folder; "
                "put open_clip_model.safetensors there (stages/pretrain.py makes it)"
            )
        return False
    if cfg.arch.startswith(HUB):
        return False
    _check_architecture(cfg.arch)
    return bool(cfg.pretrained) and _check_pretrained(cfg.arch, str(cfg.pretrained))


def feature_width(cfg: EncoderConfig) -> int:
    """C, of the features of a recipe's tower, without building it; raises as `check_encoder`."""
    check_encoder(cfg)
    return int(architecture(cfg.arch)["embed_dim"]) * len(cfg.scales)


def sketch_clip(cfg: EncoderConfig) -> ClipSketch:
    """The image-text model of a recipe without its weights, which need not exist.

    Raises:
        ConfigError: no such architecture or folder, or one whose config only the hub has.
    """
    if cfg.arch.startswith(HUB):
        raise ConfigError(
            f"encoder.arch: the sizes of {cfg.arch} are known once it is fetched; save it as a "
            "folder and use local-dir:FOLDER to see them before"
        )
    if not cfg.arch.startswith(LOCAL_DIR):
        _check_architecture(cfg.arch)
    try:
        with torch.device("meta"), _silent():
            model = open_clip.create_model(
                cfg.arch, load_weights=False, device="meta", pretrained_text=False
            )
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"encoder.arch: {cfg.arch} cannot be built ({first_line(error)}); name another"
        ) from error
    described = architecture(cfg.arch)
    text: dict[str, Any] = described.get("text_cfg", {})
    return ClipSketch(
        model,
        width=int(described["embed_dim"]),
        image_size=image_size(model),
        context_length=int(text.get("context_length", 77)),
    )


def architecture(arch: str) -> dict[str, Any]:
    """open_clip's description of a model: its sizes, and whether it uses QuickGELU."""
    config: dict[str, Any] = open_clip.get_model_config(arch)
    return config


def image_size(model: nn.Module) -> int:
    """Pixels of the longer side of what an image-text model's tower takes."""
    size: int | Iterable[int] = getattr(model.visual, "image_size", 224)
    return size if isinstance(size, int) else max(size)


def first_line(error: BaseException) -> str:
    """The first line of a library's message, so that ours stays one line."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _check_architecture(arch: str) -> None:
    if arch not in open_clip.list_models():
        near = difflib.get_close_matches(arch, open_clip.list_models(), n=4, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "see open_clip.list_models()"
        raise ConfigError(f"encoder.arch: open_clip has no architecture {arch}; {hint}")


def _check_pretrained(arch: str, pretrained: str) -> bool:
    """As `check_encoder`, for an architecture that open_clip knows and its weights."""
    if Path(pretrained).is_file():
        return False
    tag = open_clip.get_pretrained_cfg(arch, pretrained)
    if not tag and (Path(pretrained).suffix or len(Path(pretrained).parts) > 1):
        raise ConfigError(
            f"encoder.pretrained: there is no file {pretrained}; name the weights of {arch}, one "
            "of its tags, or null for random weights"
        )
    if not tag:
        tags = open_clip.list_pretrained_tags_by_model(arch)
        near = difflib.get_close_matches(pretrained, tags, n=4, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}" if near else f"tags: {', '.join(tags) or 'none'}"
        raise ConfigError(
            f"encoder.pretrained: {pretrained} is neither a file nor a tag of {arch}; {hint}, or "
            "null for random weights"
        )
    # open_clip only warns when the activation is not the one the weights were trained with.
    wants = bool(tag.get("quick_gelu", False))
    if not wants and architecture(arch).get("quick_gelu", False):
        raise ConfigError(
            f"encoder.arch: {arch} uses QuickGELU, but {pretrained} was trained without it; "
            f"use {arch.removesuffix('-quickgelu')}"
        )
    return wants


@contextmanager
def _silent() -> Iterator[None]:
    """open_clip warns, through the root logger, of weights that were left out on purpose."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
