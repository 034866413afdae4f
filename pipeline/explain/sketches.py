"""Models of a recipe on the meta device, and configurations in place of weights that are not here.

For whoever counts or checks a model without loading it. Configurations must exist; where the recipe
makes small weights itself, their sizes are taken from `pretrain.scratch`.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import nn

from pipeline.config import Config, EncoderConfig, LLMConfig
from pipeline.engine import dtype_of
from pipeline.errors import ConfigError
from pipeline.models.encoder import ImageEncoder
from pipeline.models.encoder_sketch import LOCAL_DIR, sketch_clip
from pipeline.models.families import family
from pipeline.models.multimodal import MultimodalLM
from pipeline.models.placement import Blueprint
from pipeline.models.scratch import CLIP_CONFIG, write_configs
from pipeline.recipe import HOME


def sketch_language_model(
    config: Config, *, precision: str
) -> tuple[ImageEncoder | None, MultimodalLM]:
    """A recipe's frozen image tower, and its model as it trains, on the meta device.

    The model holds the tower only where features are not cached. Raises ConfigError where a
    configuration is missing, or the sizes do not fit together.
    """
    chosen = family(config.family)
    encoder = None
    if chosen.sees_images(config):
        sketch = sketch_clip(config.encoder)
        visual = sketch.model.visual
        assert isinstance(visual, nn.Module)
        bare = ImageEncoder(visual, sketch.width, config.encoder.normalize, config.encoder.scales)
        encoder = chosen.tower(config, bare, Blueprint())
        encoder.requires_grad_(False)
    cached = encoder is None or config.data.cache_features
    model = chosen.build(
        config,
        dtype=dtype_of(precision),
        placement=Blueprint(),
        with_encoder=not cached,
        feature_width=None if encoder is None else encoder.width,
        encoder=None if cached else encoder,
    )
    return encoder, model


@contextmanager
def with_sketches(config: Config) -> Iterator[Config]:
    """The recipe with configurations in place of weights that are not here.

    Of small ones that are still to be made, and of a language model that is planned by its
    `llm.plan_by`. The configurations are gone when the block ends.
    """
    architecture = _architecture(config.llm)
    replaced = unmade_weights(config) | ({"llm"} if architecture is not None else set())
    if not replaced:
        yield config
        return
    with tempfile.TemporaryDirectory() as folder:
        write_configs(Path(folder), config.pretrain.scratch)
        if architecture is not None:
            shutil.copy(architecture, Path(folder, "llm", "config.json"))
        arch = f"{LOCAL_DIR}{folder}/clip" if "clip" in replaced else config.encoder.arch
        path = f"{folder}/llm" if "llm" in replaced else config.llm.path
        encoder: EncoderConfig = replace(config.encoder, arch=arch)
        language: LLMConfig = replace(config.llm, path=path)
        yield replace(config, encoder=encoder, llm=language)


def _architecture(llm: LLMConfig) -> Path | None:
    """The file that a language model is planned by; None where it is here, or nobody names one."""
    if llm.plan_by is None or Path(llm.path).is_dir():
        return None
    file = HOME / llm.plan_by
    if not file.is_file():
        raise ConfigError(f"llm.plan_by={llm.plan_by}: there is no such file; name a config.json")
    return file


def unmade_weights(config: Config) -> set[str]:
    """Of "clip" and "llm", what the recipe uses, makes itself, and has not made yet."""
    if not config.pretrain.out:
        return set()
    out = Path(config.pretrain.out)
    clip, llm = out / "clip", out / "llm"
    used = {
        "clip": config.encoder.arch == f"{LOCAL_DIR}{clip}" and not (clip / CLIP_CONFIG).is_file(),
        "llm": Path(config.llm.path) == llm and not (llm / "config.json").is_file(),
    }
    return {name for name, missing in used.items() if missing}
