"""The references' checkpoints by family: what a file holds for a recipe, under exported names.

A file is compared with the recipe's model, which is built on the meta device: no weights of the
base models are needed. Nothing in a file is dropped in silence.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.models import (
    lavin,
    llama_adapter,
    official,
    official_lavin,
    official_llama_adapter,
)
from pipeline.models.encoder import ImageEncoder
from pipeline.models.encoder_sketch import feature_width, sketch_clip
from pipeline.models.llm import load_llm_config
from pipeline.models.placement import Blueprint
from pipeline.models.st import silent


@dataclass(frozen=True)
class Imported:
    """What becomes an export."""

    tensors: Mapping[str, Tensor]  # float32
    remark: str  # one line for the user
    config: Config  # the recipe, with what a model of the reference needs in use


def read_reference(file: Path, config: Config) -> Imported:
    """A checkpoint of the reference of the recipe's family.

    Raises:
        ConfigError: there is no such file, or it does not fit the recipe.
        CheckpointError: it is damaged, unsafe to read, of another size, or incomplete.
    """
    return _READERS[config.family](file, config)


def _clipcap(file: Path, config: Config) -> Imported:
    found = official.read_official(file)
    official.check_recipe(found, config)
    # What the reference's models need in order to end, unless the recipe says it already.
    settings = replace(config.evaluate, stop=config.evaluate.stop or official.STOP)
    normalised = "normalised" if config.encoder.normalize else "not normalised"
    remark = (
        f"{found}; captions end at {settings.stop!r}; image features are {normalised} "
        "(encoder.normalize; no checkpoint tells whether its own were)"
    )
    return Imported(found.tensors, remark, replace(config, evaluate=settings))


def _lavin(file: Path, config: Config) -> Imported:
    sketch = sketch_clip(config.encoder)
    visual = sketch.model.visual
    assert isinstance(visual, nn.Module)
    tower = lavin.tower(config, ImageEncoder(visual, sketch.width), Blueprint())
    model = lavin.build(
        config, dtype=torch.float32, placement=Blueprint(), with_encoder=True, encoder=tower
    )
    found = official_lavin.read_official_lavin(file, model)
    found.check()
    said = [f"{len(found.tensors)} tensors of LaVIN", *official_lavin.otherwise(config)]
    return Imported(found.tensors, "; ".join(said), config)


def _llama_adapter(file: Path, config: Config) -> Imported:
    found = official_llama_adapter.read_adapter(
        file,
        depth=int(load_llm_config(config.llm).get_text_config().num_hidden_layers),
        layers=config.llama_adapter.layers,
        length=config.llama_adapter.prompt_length,
    )
    sees_images = config.llama_adapter.sees_images
    model = llama_adapter.build(
        config,
        dtype=torch.float32,
        placement=Blueprint(),
        with_encoder=False,
        feature_width=feature_width(config.encoder) if sees_images else None,
    )
    official_llama_adapter.check_sizes(file, found.tensors, model)
    projection = {f"st.{name}": each for name, each in silent(model.st).items()}
    said = [f"{len(found.tensors)} tensors of LLaMA-Adapter V1 (text)"]
    if projection:
        said.append("images say nothing to it until st trains: its projection starts at zero")
    said += found.remarks()
    return Imported({**found.tensors, **projection}, "; ".join(said), config)


_READERS: Mapping[str, Callable[[Path, Config], Imported]] = MappingProxyType(
    {"clipcap": _clipcap, "lavin": _lavin, "llama_adapter": _llama_adapter}
)
