"""Checkpoints of the references become exports that the recipe's model takes."""

from pathlib import Path

import pytest
import torch

from pipeline.assemble import build_caption_model, check_parts
from pipeline.config import Config
from pipeline.dist import World
from pipeline.errors import CheckpointError
from pipeline.export_files import ExportTensors
from pipeline.interchange import import_official
from pipeline.models import lavin, llama_adapter
from pipeline.models.official_lavin import our_name
from pipeline.models.placement import Blueprint, Placement
from pipeline.recipe import load_recipe
from tests.small import weights
from tests.tiny import write_questions

ALONE = World(0, 1, 0, 1, torch.device("cpu"))
REFERENCE = {
    "adapters.modality": "adapter_modality_embedding",
    "st.up": "adapter_proj.conv_A",
    "st.down": "adapter_proj.conv_B",
    "router": "expert_weights",
    "down": "conv_A",
    "up.0": "conv_B",
    "up.1": "conv_D",
    "encoder.adapters.": "backbone.visual.transformer.resblocks.",
    "adapters.layers.": "layers.",
}


def recipe(folder: Path, family: str) -> Config:
    config = load_recipe([f"recipe={write_questions(folder, family, make_missing=False)}"])
    config.data.cache_features = False
    weights(config, Path(config.pretrain.out))
    return config


def their_name(ours: str) -> str:
    """The reference's name of a tensor of LaVIN."""
    stem, _, kind = ours.rpartition(".")
    if stem in REFERENCE:
        return f"module.{REFERENCE[stem]}.{kind}"
    for place in ("encoder.adapters.", "adapters.layers."):
        if stem.startswith(place):
            number, _, inner = stem.removeprefix(place).partition(".")
            return f"module.{REFERENCE[place]}{number}.adapter_attn.{REFERENCE[inner]}.{kind}"
    raise KeyError(ours)


def test_a_lavin_checkpoint_fills_all_that_lavin_adds(tmp_path: Path) -> None:
    config = recipe(tmp_path, "lavin")
    options = {"dtype": torch.float32, "world": ALONE}
    fresh = build_caption_model(config, {}, {}, placement=Placement(), **options).model
    held = {
        name: torch.randn(each.shape)
        for name, each in fresh.named_parameters()
        if name.startswith(("encoder.adapters.", "st.", "adapters."))
    }
    assert all(our_name(their_name(name).removeprefix("module.")) == name for name in held)
    torch.save({their_name(name): each for name, each in held.items()}, tmp_path / "l.pth")
    said = import_official(config, tmp_path / "l.pth", tmp_path / "out")
    assert f"{len(held)} tensors of LaVIN" in said
    export = ExportTensors(tmp_path / "out")
    built = build_caption_model(config, export, {}, placement=Placement(), **options).model
    named = dict(built.named_parameters())
    assert export.keys() == held.keys()
    assert all(torch.equal(named[name], held[name]) for name in held)


def test_a_llama_adapter_checkpoint_fills_its_prompts(tmp_path: Path) -> None:
    config = recipe(tmp_path, "llama_adapter")
    width, layers, length = 32, 2, 3
    gates = {f"layers.{i}.attention.gate": torch.randn(1, 2, 1, 1) for i in range(layers)}
    prompts = torch.randn(layers * length, width)
    frozen = {"layers.0.attention.wq.weight": prompts}
    torch.save({"adapter_query.weight": prompts, **gates, **frozen}, tmp_path / "a.pth")
    said = import_official(config, tmp_path / "a.pth", tmp_path / "out")
    assert "4 tensors of LLaMA-Adapter V1" in said and "attention.wq.weight" in said
    model = llama_adapter.build(
        config, dtype=torch.float32, placement=Blueprint(), with_encoder=False, feature_width=16
    )
    check_parts(model, ExportTensors(tmp_path / "out"), Blueprint())


def test_an_export_of_another_family_is_refused(tmp_path: Path) -> None:
    config = recipe(tmp_path, "lavin")
    model = lavin.build(
        config, dtype=torch.float32, placement=Blueprint(), with_encoder=False, feature_width=16
    )
    prompts = {"adaption.late.0.prompt": torch.ones(3, 32)}
    with pytest.raises(CheckpointError, match="set family to what it was trained with"):
        check_parts(model, prompts, Blueprint())
