"""A recipe's caption model: base weights with an export laid over them, fed by images or features.

Shared by training and evaluation. Builds; never trains, never writes but the feature cache.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pipeline.checkpoint import ExportTensors, content_hash, fingerprint_of, tensor_hash
from pipeline.config import Config
from pipeline.data.features import CachedFeatures, encode_shards
from pipeline.data.loader import DecodedImages
from pipeline.dist import World, wait_for_all
from pipeline.errors import CheckpointError
from pipeline.models.encoder import ImageEncoder, Transform, load_image_encoder
from pipeline.models.families import family
from pipeline.models.llm import load_tokenizer
from pipeline.models.multimodal import MultimodalLM
from pipeline.models.placement import Placement
from pipeline.splits import NO_IMAGES, Images, Split, decoded

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class CaptionModel:
    """A caption model with what it needs to be fed."""

    model: MultimodalLM
    tokenizer: PreTrainedTokenizerBase
    images: Mapping[str, Images]  # by split


def build_caption_model(
    config: Config,
    start: Mapping[str, Tensor],
    splits: Mapping[str, Split],
    *,
    dtype: torch.dtype,
    placement: Placement,
    world: World,
) -> CaptionModel:
    """The recipe's model from base weights, with the tensors of an export laid over them.

    Where features are cached, the encoder runs here, once for each image, and is dropped: the model
    is then fed features. start: by exported name; empty for the base weights alone.
    """
    tokenizer = load_tokenizer(config.llm)
    chosen = family(config.family)
    if not chosen.SEES_IMAGES:
        model = chosen.build(config, dtype=dtype, placement=placement, with_encoder=False)
        overlay(model.llm, start, "llm.", placement)
        return CaptionModel(model, tokenizer, dict.fromkeys(splits, NO_IMAGES))
    encoder, transform = load_image_encoder(config.encoder, seed=config.seed)
    overlay(encoder, start, "encoder.", Placement())
    encoder.requires_grad_(False)
    size = _image_size(transform)
    plain = dict.fromkeys(splits, decoded(transform, size))
    images = plain
    if config.data.cache_features:
        images = {
            name: _cached(config, name, splits[name], plain[name], encoder, dtype, world)
            for name in splits
        }
    width = encoder.width
    model = chosen.build(
        config,
        dtype=dtype,
        placement=placement,
        with_encoder=not config.data.cache_features,
        feature_width=width,
        encoder=None if config.data.cache_features else encoder,
    )
    overlay(model.st, start, "st.", placement)
    overlay(model.llm, start, "llm.", placement)
    return CaptionModel(model, tokenizer, images)


def overlay(
    module: nn.Module, tensors: Mapping[str, Tensor], prefix: str, placement: Placement
) -> None:
    """Writes the tensors whose names start with `prefix` over the module's own, one by one.

    Raises CheckpointError for a tensor that the module does not have, or has in another shape, on
    every rank alike and before anything is written.
    """
    named = dict(module.named_parameters())
    mine = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    for name, exported in mine.items():
        if name not in named:
            raise CheckpointError(
                f"the export holds {exported}, which this model does not have; use the recipe that "
                "made the export, or another init_from="
            )
        ours, theirs = tuple(placement.shape(named[name])), _shape(tensors, exported)
        if ours != theirs:
            raise CheckpointError(
                f"the export's {exported} is {theirs}, the model's is {ours}; use the recipe that "
                "made the export, or another init_from="
            )
    for name, exported in mine.items():
        with placement.writable([named[name]]) as writes:
            if writes:
                with torch.no_grad():
                    named[name].copy_(tensors[exported])


def overlay_clip(clip: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Lays an export's encoder and text tower over an open_clip model; see `overlay`."""
    for part in ("encoder.", "text."):
        overlay(clip, tensors, part, Placement())


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if isinstance(tensors, ExportTensors):
        return tensors.shape(name)
    return tuple(tensors[name].shape)


def _cached(
    config: Config,
    name: str,
    split: Split,
    images: Images,
    encoder: ImageEncoder,
    dtype: torch.dtype,
    world: World,
) -> Images:
    """Encodes the split once, on all ranks together, unless a cache of these weights is there."""
    assert isinstance(images.source, DecodedImages)
    made_by = [tensor_hash(encoder.state_dict()), repr(images.source.transform), str(dtype)]
    made_by.append(str(config.data.max_pixels))
    key = fingerprint_of(made_by, config.encoder.normalize, split.manifest.fingerprint)
    folder = Path(config.runs) / "features" / key
    encoder = encoder.to(world.device, dtype).eval()

    @torch.no_grad()
    def encode(batch: Tensor) -> Tensor:
        features: Tensor = encoder(batch.to(world.device, dtype))
        return features

    encoded = encode_shards(
        split.reader,
        images.source,
        encode,
        folder,
        width=encoder.width,
        rank=world.rank,
        ranks=world.size,
        workers=config.data.workers,
    )
    wait_for_all(world)
    if encoded:
        log.info("features      %s: images encoded once, kept in %s", name, folder)
    return Images(CachedFeatures(folder), (encoder.width,))


def recipe_identity(config: Config, cache: Path, *, language: bool) -> dict[str, object]:
    """What base weights and model a recipe means, independent of where its files lie.

    language: of a phase with an LM; without, only what the contrastive phase reads.
    """
    encoder = replace(config.encoder)
    source = config.encoder.arch.removeprefix("local-dir:")
    weights = [source, config.encoder.pretrained or "", config.llm.path]
    if not family(config.family).SEES_IMAGES:
        weights[:2] = ["", ""]
    hashes = [content_hash(Path(each), cache) if each else "" for each in weights]
    arch = hashes[0] if source != config.encoder.arch else encoder.arch
    identity: dict[str, object] = {
        "seed": config.seed,
        "precision": config.precision,
        "encoder": [arch, hashes[1], encoder.pixels, encoder.resize],
        "data": [config.data.lanes, config.data.window],
    }
    if not language:
        return identity
    return {
        **identity,
        "family": config.family,
        "normalize": encoder.normalize,
        "max_tokens": config.data.max_tokens,
        "st": vars(config.st),
        "llm": [hashes[2], config.llm.dropout],
    }


def _image_size(transform: Transform) -> int:
    """Pixels on each side of what the transform gives."""
    probe = transform(Image.new("RGB", (8, 8)))
    return int(probe.shape[-1])
