"""Image towers (and whole CLIP models) from open_clip, and how their parameters are ordered.

Uses open_clip's public interface only and never unpickles: weights are safetensors, or torch files
read with weights_only. It assumes nothing about which architecture it is; images come in as
open_clip's own validation transform makes them.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from pipeline.models.encoder_sketch import (
    HUB,
    LOCAL_DIR,
    architecture,
    check_encoder,
    first_line,
    image_size,
)
from pipeline.models.multiscale import enlarged, views
from pipeline.models.weights import UNREADABLE, why_unreadable

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
    described = architecture(cfg.arch)
    text: dict[str, Any] = described.get("text_cfg", {})
    try:
        tokenizer = clip_tokenizer(cfg.arch)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"encoder.arch: {cfg.arch}: its tokenizer cannot be loaded ({first_line(error)}); "
            "put the tokenizer's files into the folder, or fetch them once with network access"
        ) from error
    context = int(text.get("context_length", getattr(tokenizer, "context_length", 77)))
    return Clip(
        model=model,
        transform=transform,
        tokenize=functools.partial(tokenizer, context_length=context),
        width=int(described["embed_dim"]),
        image_size=image_size(model),
        context_length=context,
    )


def clip_tokenizer(arch: str) -> Any:
    """open_clip's tokenizer of an architecture, callable; code that lies beside one is not run."""
    text: dict[str, Any] = architecture(arch).get("text_cfg", {})
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
    width = int(architecture(cfg.arch)["embed_dim"])
    return ImageEncoder(visual, width, cfg.normalize, cfg.scales).eval(), transform


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
                f"encoder: {cfg.arch}, {cfg.pretrained}: cannot be fetched ({first_line(error)}); "
                "fetch it once where there is network, or set encoder.pretrained to a local file"
            ) from error
        raise CheckpointError(
            f"encoder: {cfg.arch}, {cfg.pretrained}: the weights are damaged or do not fit "
            f"({first_line(error)}); use the weights of this architecture"
        ) from error
    return model.eval(), transform


def _pretrained(cfg: EncoderConfig) -> str | None:
    return None if cfg.arch.startswith((LOCAL_DIR, HUB)) else cfg.pretrained


def _visual(model: nn.Module) -> nn.Module:
    visual = model.visual
    if not isinstance(visual, nn.Module):
        raise TypeError(f"{type(model).__name__}.visual is no module")
    return visual
