"""Image towers (and whole CLIP models) from open_clip, and how their parameters are ordered.

Uses open_clip's public interface only and never unpickles: weights are safetensors, or torch files
read with weights_only. It assumes nothing about which architecture it is; images come in as
open_clip's own validation transform makes them.
"""

import difflib
import functools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import EncoderConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.multiscale import enlarged, views
from pipeline.models.weights import UNREADABLE, why_unreadable

LOCAL_DIR = "local-dir:"  # open_clip's scheme for a folder with its config and weights
HUB = "hf-hub:"

# One block of an image tower; group 1 is its number.
_BLOCK = re.compile(
    r"(?:transformer\.resblocks\.|layer|trunk\.(?:blocks|stages|layers)\.|trunk\.layer)(\d+)\."
)
# Registered before the blocks of open_clip's VisionTransformer, used after them.
_HEAD = re.compile(r"(?:proj$|ln_post\.|attn_pool)")

Transform = Callable[[Image.Image], Tensor]
Tokenize = Callable[[list[str]], Tensor]


@dataclass
class Clip:
    """An image-text model with what it needs to be fed."""

    model: nn.Module  # open_clip's CLIP (or CustomTextCLIP, CoCa), float32, on the CPU
    transform: Transform  # RGB image -> (3, H, W) float32
    tokenize: Tokenize  # N texts -> (N, context_length) long
    width: int  # of the pooled, projected features
    image_size: int  # pixels, the longer side
    context_length: int  # tokens


@dataclass
class ClipSketch:
    """The shapes of an image-text model: on the meta device, to be counted, not run."""

    model: nn.Module
    width: int  # of the pooled, projected features
    image_size: int  # pixels, the longer side
    context_length: int  # tokens


class ImageEncoder(nn.Module):
    """An image tower that gives one pooled, projected feature for each image (and scale).

    Batch normalisation always uses its stored statistics: batches of a fine-tuning are small, and
    the loss of a step must not depend on how it is cut into micro-batches.

    Args:
        visual: the tower, the `visual` of an open_clip model.
        width: of its features.
        normalize: L2-normalise them. SOURCE: ClipCap train.py:44-46, --normalize_prefix.
        scales: see `multiscale.views`; images are max(scales) times the tower's size.
    """

    def __init__(
        self,
        visual: nn.Module,
        width: int,
        normalize: bool = False,
        scales: Sequence[int] = (1,),
    ) -> None:
        super().__init__()
        self.visual = visual
        self.width = width * len(scales)
        self.normalize = normalize
        self.scales = tuple(scales)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Of one image's feature: (C,)."""
        return (self.width,)

    @property
    def settings(self) -> dict[str, object]:
        """What a feature depends on besides weights and pixels."""
        return {"normalize": self.normalize, "scales": self.scales}

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C): the scales' features one after the other."""
        images = images.to(next(self.visual.parameters()).dtype)
        found = [self._pooled(tiles).mean(1) for tiles in views(images, self.scales)]
        return torch.cat(found, -1)

    def _pooled(self, tiles: Tensor) -> Tensor:
        """(B, N, 3, H, W) -> (B, N, C), each tile by itself."""
        out = self.visual(tiles.flatten(0, 1))
        features: Tensor = out[0] if isinstance(out, tuple) else out  # CoCa adds its tokens
        features = F.normalize(features, dim=-1) if self.normalize else features
        return features.reshape(*tiles.shape[:2], -1)

    def train(self, mode: bool = True) -> "ImageEncoder":
        """Sets the mode of everything but batch normalisation, which stays in eval."""
        super().train(mode)
        hold_batch_norm(self)
        return self


def hold_batch_norm(model: nn.Module) -> None:
    """Puts batch normalisation in eval mode: its stored statistics are of far more images."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def load_clip(cfg: EncoderConfig, *, seed: int = 0) -> Clip:
    """The image-text model of a recipe, both towers.

    Args:
        cfg: the recipe's `encoder`.
        seed: of the weights where `cfg.pretrained` is null; the same on every rank.

    Returns:
        The model in float32 and eval mode on the CPU, and its transform and tokenizer.

    Raises:
        ConfigError: no such architecture, tag, file or folder, or it cannot be fetched.
        CheckpointError: the weights are of another architecture, or unsafe to read.
    """
    model, transform = _create(cfg, seed)
    architecture = _architecture(cfg.arch)
    text: dict[str, Any] = architecture.get("text_cfg", {})
    try:
        tokenizer = clip_tokenizer(cfg.arch)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"encoder.arch: {cfg.arch}: its tokenizer cannot be loaded ({_line(error)}); "
            "put the tokenizer's files into the folder, or fetch them once with network access"
        ) from error
    context = int(text.get("context_length", getattr(tokenizer, "context_length", 77)))
    return Clip(
        model=model,
        transform=transform,
        tokenize=functools.partial(tokenizer, context_length=context),
        width=int(architecture["embed_dim"]),
        image_size=_image_size(model),
        context_length=context,
    )


def clip_tokenizer(arch: str) -> Any:
    """open_clip's tokenizer of an architecture, callable; code that lies beside one is not run."""
    text: dict[str, Any] = _architecture(arch).get("text_cfg", {})
    by_transformers = arch.startswith(HUB) or text.get("hf_tokenizer_name")
    # Ours overrules what the folder's own config may say.
    options = {"trust_remote_code": False} if by_transformers else {}
    return open_clip.get_tokenizer(arch, **options)


def load_image_encoder(cfg: EncoderConfig, *, seed: int = 0) -> tuple[ImageEncoder, Transform]:
    """The image tower alone; the text tower is dropped and no tokenizer is touched.

    Args, raises: as `load_clip`.

    Returns:
        The encoder in float32 and eval mode on the CPU, and open_clip's validation transform, to
        the size that the largest of `cfg.scales` needs.
    """
    model, transform = _create(cfg, seed)
    visual = _visual(model)
    if max(cfg.scales) > 1:
        transform = enlarged(visual, max(cfg.scales))
    width = int(_architecture(cfg.arch)["embed_dim"])
    return ImageEncoder(visual, width, cfg.normalize, cfg.scales).eval(), transform


def feature_width(cfg: EncoderConfig) -> int:
    """C, of the features of a recipe's tower, without building it; raises as `check_encoder`."""
    check_encoder(cfg)
    return int(_architecture(cfg.arch)["embed_dim"]) * len(cfg.scales)


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
            f"encoder.arch: {cfg.arch} cannot be built ({_line(error)}); name another"
        ) from error
    architecture = _architecture(cfg.arch)
    text: dict[str, Any] = architecture.get("text_cfg", {})
    return ClipSketch(
        model,
        width=int(architecture["embed_dim"]),
        image_size=_image_size(model),
        context_length=int(text.get("context_length", 77)),
    )


def depth_groups(visual: nn.Module) -> list[list[str]]:
    """The tower's parameter names from the image to the feature.

    Args:
        visual: open_clip's VisionTransformer or ModifiedResNet, or a timm tower.

    Returns:
        The stem, one group for each block, and the head; every parameter in exactly one group.

    Raises:
        ConfigError: a tower whose blocks are not known here.
    """
    names = [name for name, _ in visual.named_parameters()]
    numbers = [_BLOCK.match(name) for name in names]
    found = sorted({int(match[1]) for match in numbers if match})
    if not found:
        raise ConfigError(
            f"encoder_adapt.train: the blocks of a {type(visual).__name__} are not known; "
            "use train: all and layer_decay: 1.0, or another encoder.arch"
        )
    first = next(index for index, match in enumerate(numbers) if match)
    groups: list[list[str]] = [[] for _ in range(len(found) + 2)]
    for index, (name, match) in enumerate(zip(names, numbers, strict=True)):
        if match:
            groups[1 + found.index(int(match[1]))].append(name)
        else:
            groups[-1 if _HEAD.match(name) or index > first else 0].append(name)
    return groups


def _create(cfg: EncoderConfig, seed: int) -> tuple[nn.Module, Transform]:
    """open_clip's model and validation transform; the user's mistakes become one line."""
    options: dict[str, Any] = {"force_quick_gelu": True} if check_encoder(cfg) else {}
    if cfg.pixels == "imagenet":
        options |= {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
    if cfg.resize == "squash":
        options["image_resize_mode"] = "squash"
    try:
        with torch.random.fork_rng(devices=[]):  # random weights must agree between ranks
            torch.default_generator.manual_seed(seed)
            model, _, transform = open_clip.create_model_and_transforms(
                cfg.arch, pretrained=_pretrained(cfg), weights_only=True, **options
            )
    except UnpicklingError as error:
        raise CheckpointError(
            f"encoder.pretrained: {cfg.pretrained} cannot be read without running code from it, "
            f"or is damaged ({why_unreadable(error)}); fetch it again, or convert it to safetensors"
        ) from error
    except (*UNREADABLE, AttributeError) as error:  # AttributeError: a file with no state dict
        if "ailed to download" in str(error) or cfg.arch.startswith(HUB):
            raise ConfigError(
                f"encoder: {cfg.arch}, {cfg.pretrained}: cannot be fetched ({_line(error)}); fetch "
                "it once where there is network, or set encoder.pretrained to a local file"
            ) from error
        raise CheckpointError(
            f"encoder: {cfg.arch}, {cfg.pretrained}: the weights are damaged or do not fit "
            f"({_line(error)}); use the weights of this architecture"
        ) from error
    return model.eval(), transform


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
    if not wants and _architecture(arch).get("quick_gelu", False):
        raise ConfigError(
            f"encoder.arch: {arch} uses QuickGELU, but {pretrained} was trained without it; "
            f"use {arch.removesuffix('-quickgelu')}"
        )
    return wants


def _pretrained(cfg: EncoderConfig) -> str | None:
    return None if cfg.arch.startswith((LOCAL_DIR, HUB)) else cfg.pretrained


def _architecture(arch: str) -> dict[str, Any]:
    config: dict[str, Any] = open_clip.get_model_config(arch)
    return config


def _visual(model: nn.Module) -> nn.Module:
    visual = model.visual
    if not isinstance(visual, nn.Module):
        raise TypeError(f"{type(model).__name__}.visual is no module")
    return visual


def _image_size(model: nn.Module) -> int:
    size: int | Iterable[int] = getattr(_visual(model), "image_size", 224)
    return size if isinstance(size, int) else max(size)


@contextmanager
def _silent() -> Iterator[None]:
    """open_clip warns, through the root logger, of weights that were left out on purpose."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _line(error: BaseException) -> str:
    """The first line of a library's message, so that ours stays one line."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
