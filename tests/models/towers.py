"""Small image towers as open_clip makes them of each kind of weights; random, no downloads."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import open_clip
import timm
import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

SIZE = 16  # pixels
_TEXT = {"context_length": 8, "vocab_size": 20, "width": 8, "heads": 2, "layers": 1}
_VIT = {"image_size": SIZE, "patch_size": 8, "width": 16, "layers": 3, "head_width": 8}
_VISION: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "clip": _VIT,
        "siglip": {
            "image_size": SIZE,
            "timm_model_name": "eim_tiny_siglip",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
    }
)


@register_model
def eim_tiny_siglip(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """timm's vit_*_siglip_224, smaller: no class token, attention pooling."""
    model = VisionTransformer(
        img_size=SIZE,
        patch_size=8,
        embed_dim=16,
        depth=3,
        num_heads=2,
        class_token=False,
        global_pool="map",
        num_classes=0,
    )
    model.default_cfg = timm.get_pretrained_cfg("vit_base_patch16_siglip_224").to_dict()
    return model


def visual(kind: str) -> nn.Module:
    """The tower of a small CLIP (with QuickGELU, as OpenAI's), SigLIP, or CLIP with a ResNet."""
    torch.manual_seed(0)
    config = _VISION[kind]
    make = open_clip.CustomTextCLIP if kind == "siglip" else open_clip.CLIP
    width = 16 if kind == "siglip" else 6
    model = make(embed_dim=width, vision_cfg=config, text_cfg=_TEXT, quick_gelu=kind == "clip")
    found: nn.Module = model.visual.eval()
    return found
