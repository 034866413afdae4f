"""A recipe's caption model: base weights with an export laid over them, fed by images or features.

Shared by training and evaluation. Builds; never trains, never writes but the feature cache.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pipeline.config import Config
from pipeline.data.features import CachedFeatures, encode_shards, feature_files
from pipeline.data.loader import DecodedImages
from pipeline.dist import World
from pipeline.errors import CheckpointError, ConfigError
from pipeline.export_files import IMPORTED, ExportTensors, read_export
from pipeline.hashes import fingerprint_of, tensor_hash
from pipeline.malloc import returning_freed_memory
from pipeline.models.encoder import (
    Clip,
    ImageEncoder,
    Transform,
    load_clip,
    load_image_encoder,
)
from pipeline.models.families import check_made_with, family
from pipeline.models.llm import load_tokenizer
from pipeline.models.lora import check_settings, is_adapter, stable_name
from pipeline.models.multimodal import MultimodalLM
from pipeline.models.official import STOP
from pipeline.models.placement import WHOLE, Placement
from pipeline.models.quantize import is_quantized
from pipeline.models.tower import AdaptedTower
from pipeline.splits import NO_IMAGES, Images, Split, decoded
from pipeline.stopping import stop_if_asked

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class CaptionModel:
    """A caption model with what it needs to be fed."""

    model: MultimodalLM
    tokenizer: PreTrainedTokenizerBase
    images: Mapping[str, Images]  # by split
    decoded: Images  # for images that belong to no split; the model needs its encoder then


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
    if not chosen.sees_images(config):
        with returning_freed_memory():
            model = chosen.build(config, dtype=dtype, placement=placement, with_encoder=False)
            overlay_parts(model, start, placement)
        return CaptionModel(model, tokenizer, dict.fromkeys(splits, NO_IMAGES), NO_IMAGES)
    bare, transform = load_image_encoder(config.encoder, seed=config.seed)
    encoder = chosen.tower(config, bare)
    overlay(encoder, start, "encoder.", Placement())
    encoder.requires_grad_(False)
    plain = decoded(transform, _image_size(transform))
    images = dict.fromkeys(splits, plain)
    if config.data.cache_features:
        images = {
            name: _cached(config, name, splits[name], plain, encoder, dtype, world)
            for name in splits
        }
    width = encoder.width
    with returning_freed_memory():
        model = chosen.build(
            config,
            dtype=dtype,
            placement=placement,
            with_encoder=not config.data.cache_features,
            feature_width=width,
            encoder=None if config.data.cache_features else encoder,
        )
        overlay_parts(model, start, placement)
    return CaptionModel(model, tokenizer, images, plain)


def check_adapters(config: Config, export: Path) -> None:
    """Raises CheckpointError where an export holds other adapters than the recipe's model has."""
    details = read_export(export) or {}
    check_settings(details.get("lora"), config.llm.lora, export)
    check_made_with(details.get("family"), config, export)


def check_stop(config: Config, export: Path) -> None:
    """Raises ConfigError where captions of an imported model would not end under this recipe."""
    details = read_export(export) or {}
    captions = config.family == "clipcap"
    if captions and details.get("phase") == IMPORTED and config.evaluate.stop is None:
        raise ConfigError(
            f"{export} comes from the reference, which never learnt an EOS, so its captions would "
            f"not end; set evaluate.stop={STOP}"
        )


def overlay_parts(model: MultimodalLM, tensors: Mapping[str, Tensor], placement: Placement) -> None:
    """Lays an export over all of a model but its image tower; see `overlay`."""
    check_known(model, tensors)
    for name, part in _parts_of(model).items():
        overlay(part, tensors, f"{name}.", placement)


def check_parts(model: MultimodalLM, tensors: Mapping[str, Tensor], placement: Placement) -> None:
    """Raises CheckpointError as `overlay_parts` does; writes nothing."""
    check_known(model, tensors)
    for name, part in _parts_of(model).items():
        check_overlay(part, tensors, f"{name}.", placement)


def check_known(model: MultimodalLM, tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError for tensors of a part that a model of this family does not have."""
    known = (*_parts_of(model), "encoder", "text")
    unknown = [name for name in tensors if name.partition(".")[0] not in known]
    if unknown:
        raise CheckpointError(
            f"the export holds {unknown[0]} and {len(unknown) - 1} more tensors that a "
            f"{type(model).__name__} does not have; set family to what it was trained with, or "
            "use another init_from="
        )


def _parts_of(model: MultimodalLM) -> dict[str, nn.Module]:
    """By the first part of their parameters' exported names."""
    return {name: part for name, part in model.named_children() if name != "encoder"}


def overlay(
    module: nn.Module, tensors: Mapping[str, Tensor], prefix: str, placement: Placement
) -> None:
    """Writes the tensors whose names start with `prefix` over the module's own, one by one.

    Names are those of exports, where a layer's weights are called alike with and without adapters.

    Raises CheckpointError for a tensor that the module does not have, or has in another shape, on
    every rank alike and before anything is written.
    """
    named = {stable_name(name): each for name, each in module.named_parameters()}
    mine = check_overlay(module, tensors, prefix, placement)
    for name, exported in mine.items():
        with placement.writable([named[name]]) as writes:
            if writes:
                with torch.no_grad():
                    named[name].copy_(tensors[exported])


def check_overlay(
    module: nn.Module, tensors: Mapping[str, Tensor], prefix: str, placement: Placement
) -> dict[str, str]:
    """The tensors whose names start with `prefix`, by their names in the module.

    Reads shapes alone. Raises CheckpointError as `overlay` does.
    """
    named = {stable_name(name): each for name, each in module.named_parameters()}
    mine = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    for name, exported in mine.items():
        if name not in named:
            adapters = " (set llm.lora to what it was trained with)" if is_adapter(name) else ""
            raise CheckpointError(
                f"the export holds {exported}, which this model does not have; use the recipe that "
                f"made the export{adapters}, or another init_from="
            )
        if is_quantized(named[name]):
            raise CheckpointError(
                f"the export holds trained values of {exported}, which llm.quantize holds in few "
                "bits; set llm.quantize=none, or use another init_from="
            )
        ours, theirs = tuple(placement.shape(named[name])), _shape(tensors, exported)
        if ours != theirs:
            raise CheckpointError(
                f"the export's {exported} is {theirs}, the model's is {ours}; use the recipe that "
                "made the export, or another init_from="
            )
    return mine


def image_text_model(config: Config, *exports: Mapping[str, Tensor]) -> Clip:
    """The recipe's image-text model with exports laid over it, one after the other.

    Where one of them has adapters in its image tower, or `encoder_adapt` trains some, they are the
    model's `adapters`.
    """
    clip = load_clip(config.encoder, seed=config.seed)
    add_tower_adapters(config, clip.model, WHOLE, *exports)
    for export in exports:
        overlay_clip(clip.model, export)
    return clip


def add_tower_adapters(
    config: Config, clip: nn.Module, placement: Placement, *exports: Mapping[str, Tensor]
) -> None:
    """Puts the family's adapters into an image-text model's tower, as its `adapters`.

    Only where they train or an export has some; never where the family has none, which an export
    with some does not fit then.
    """
    held = any(name.startswith("encoder.adapters.") for export in exports for name in export)
    if not held and config.encoder_adapt.train != "adapters":
        return
    visual = clip.visual
    assert isinstance(visual, nn.Module)
    tower = family(config.family).tower(config, ImageEncoder(visual, 0), placement)
    if isinstance(tower, AdaptedTower):
        clip.adapters = tower.adapters


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
    """Encodes the split once, on all ranks together, unless a cache of these weights is there.

    Each set of a mixture has a cache of its own, which other mixtures use too.
    """
    assert isinstance(images.source, DecodedImages)
    made_by = [tensor_hash(encoder.state_dict()), repr(images.source.transform), str(dtype)]
    made_by += [str(config.data.max_pixels), str(config.data.max_image_bytes)]
    made_by += [repr(encoder.settings)]
    encoder = encoder.to(world.device, dtype).eval()

    @torch.no_grad()
    def encode(batch: Tensor) -> Tensor:
        features: Tensor = encoder(batch.to(world.device, dtype))
        return features

    places = []
    for part in split.parts:
        key = fingerprint_of(made_by, part.fingerprint)
        folder = Path(config.runs) / "features" / key
        encoded = encode_shards(
            part.reader,
            images.source,
            encode,
            folder,
            shape=encoder.feature_shape,
            rank=world.rank,
            ranks=world.size,
            workers=config.data.workers,
            presence=world.presence,
        )
        stop_if_asked(world)
        if encoded:
            log.info("features      %s: images encoded once, kept in %s", name, folder)
        places += feature_files(folder, part.shards)
    return Images(CachedFeatures(places), encoder.feature_shape)


def _image_size(transform: Transform) -> int:
    """Pixels on each side of what the transform gives."""
    probe = transform(Image.new("RGB", (8, 8)))
    return int(probe.shape[-1])
