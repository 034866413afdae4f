"""Recall at k of image-to-text and text-to-image retrieval: how well two towers find each other.

A pure function of features. Does not assume normalised features, one caption per image, or a
similarity matrix that fits into memory. Ties count against the model, so that towers which map
everything onto one point score nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Cosines closer than this are a tie: float32 rounding is no evidence for one of them.
TIE = 1e-6
# Similarities held at once (float32, so 64 MB, and a few masks of the same shape).
CHUNK_ELEMENTS = 1 << 24


def recall_at_k(
    image_features: Tensor,
    text_features: Tensor,
    text_image: Tensor,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """The share of queries whose own counterpart is among the k most similar, both ways.

    Image to text is a hit when any of the image's own captions is in the top k; text to image when
    its image is. A candidate as similar as the own one ranks before it; so does one whose
    similarity is not a number. Identical captions of different images are such ties.

    Args:
        image_features: (I, C), any float type, on any device.
        text_features: (T, C), on the same device.
        text_image: (T,) long; the row of each text's image. Every image has at least one text.
        ks: the cut-offs.

    Returns:
        i2t_r<k> and t2i_r<k> for every k, 0 to 1.

    Raises:
        ValueError: shapes do not fit, `text_image` points outside, or an image has no text.
    """
    images, texts = len(image_features), len(text_features)
    if image_features.shape[1:] != text_features.shape[1:] or text_image.shape != (texts,):
        raise ValueError(
            f"features {tuple(image_features.shape)} and {tuple(text_features.shape)} "
            f"do not fit each other or text_image {tuple(text_image.shape)}"
        )
    if set(text_image.tolist()) != set(range(images)) or not images:
        raise ValueError(f"text_image must name each of the {images} images, and nothing else")
    image_unit = F.normalize(image_features.float(), dim=-1)
    text_unit = F.normalize(text_features.float(), dim=-1)
    better = {
        "i2t": _texts_before_own(image_unit, text_unit, text_image),
        "t2i": _images_before_own(image_unit, text_unit, text_image),
    }
    return {
        f"{way}_r{k}": (before < k).float().mean().item()
        for way, before in better.items()
        for k in ks
    }


def _texts_before_own(images: Tensor, texts: Tensor, text_image: Tensor) -> Tensor:
    """For each image, how many texts of others rank before its best own one: (I,)."""
    counts = []
    rows = torch.arange(len(images), device=images.device)
    for chunk in torch.split(rows, _chunk(len(texts))):
        similarity = images[chunk] @ texts.T
        own = text_image[None, :] == chunk[:, None]
        best = similarity.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        counts.append((_not_below(similarity, best) & ~own).sum(dim=1))
    return torch.cat(counts)


def _images_before_own(images: Tensor, texts: Tensor, text_image: Tensor) -> Tensor:
    """For each text, how many images rank before its own one: (T,)."""
    counts = []
    size = _chunk(len(images))
    for text, owner in zip(torch.split(texts, size), torch.split(text_image, size), strict=True):
        similarity = text @ images.T
        own = similarity.gather(1, owner[:, None])
        counts.append(_not_below(similarity, own).sum(dim=1) - 1)  # the own image itself
    return torch.cat(counts)


def _not_below(similarity: Tensor, own: Tensor) -> Tensor:
    """True where a candidate ranks before the own one: better, tied, or not a number."""
    return ~(similarity < own - TIE)


def _chunk(candidates: int) -> int:
    return max(1, CHUNK_ELEMENTS // candidates)
