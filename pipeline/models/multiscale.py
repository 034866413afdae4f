"""An image at several scales, each cut into tiles of the size that an image tower takes.

LLaMA-Adapter concatenates "multi-scale global features" of CLIP (arXiv:2303.16199, section 3.3) and
does not say how it gets them; this is the way of S2 (Shi et al., arXiv:2403.13043): the tower sees
every tile at its own size, so that any tower works and no position has to be interpolated. Assumes
towers of open_clip, which keep their preprocessing as `preprocess_cfg`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F


def views(images: Tensor, scales: Sequence[int]) -> Iterator[Tensor]:
    """The tiles of each scale.

    Args:
        images: (B, 3, m * H, m * W) for a tower of (H, W), where m is the largest scale.
        scales: s shrinks the image to s times the tower's size and cuts it into s * s tiles.

    Yields:
        (B, s * s, 3, H, W) for each s.
    """
    largest = max(scales)
    height, width = images.shape[-2] // largest, images.shape[-1] // largest
    for scale in scales:
        scaled = images
        if scale != largest:
            size = (scale * height, scale * width)
            single = F.interpolate(images.float(), size, mode="bicubic", antialias=True)
            scaled = single.to(images.dtype)
        tiles = scaled.reshape(-1, 3, scale, height, scale, width)
        yield tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def enlarged(visual: nn.Module, scale: int) -> Callable[[Image.Image], Tensor]:
    """The tower's own validation transform, to `scale` times its size."""
    own: Any = visual.preprocess_cfg
    settings = PreprocessCfg(**own)
    sides = settings.input_size[1:]  # pixels: height, width
    bigger = replace(settings, size=tuple(scale * side for side in sides))
    transform: Callable[[Image.Image], Tensor] = image_transform_v2(bigger, is_train=False)
    return transform
