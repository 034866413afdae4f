"""ClipCap against the reference implementation's numbers, its row layout, and its assembly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.config import (
    PARTS,
    Config,
    EncoderConfig,
    LlamaAdapterConfig,
    LLMConfig,
    STConfig,
)
from pipeline.errors import ConfigError
from pipeline.models import clipcap
from pipeline.models.clipcap import ClipCap
from pipeline.models.families import FAMILIES, family
from pipeline.models.multimodal import IGNORE, IMAGE_SLOT
from pipeline.models.official import mapper_name
from pipeline.models.placement import Placement
from pipeline.models.st import build_st
from tests.models import tiny

GOLDEN = Path(__file__).parents[1] / "golden"


def golden_file(kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a golden file, and the sizes that it was made with."""
    with safe_open(GOLDEN / f"clipcap_{kind}.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["config"])


def golden(kind: str) -> tuple[ClipCap, dict[str, Tensor], dict[str, Any]]:
    tensors, sizes = golden_file(kind)
    keys = ("kind", "prefix_length", "clip_length", "num_layers", "num_heads")
    cfg = STConfig(**{key: sizes[key] for key in keys})
    st = build_st(cfg, width=sizes["embedding_width"], llm_width=sizes["gpt2"]["n_embd"])
    llm = GPT2LMHeadModel(GPT2Config(**sizes["gpt2"]))
    st.load_state_dict(
        {
            mapper_name(name.removeprefix("weight.clip_project.")): value
            for name, value in tensors.items()
            if name.startswith("weight.clip_project.")
        }
    )
    weights = {
        name.removeprefix("weight.gpt."): value
        for name, value in tensors.items()
        if name.startswith("weight.gpt.")
    }
    llm.load_state_dict({**weights, "lm_head.weight": weights["transformer.wte.weight"]})
    return ClipCap(None, st, llm).eval(), tensors, sizes


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_outputs_loss_and_gradients_equal_the_reference(kind: str) -> None:
    model, tensors, sizes = golden(kind)
    tokens, features = tensors["input.tokens"], tensors["input.clip_embedding"]
    rows, length = tokens.shape
    prefix = sizes["prefix_length"]
    slots = torch.full((rows, prefix), IMAGE_SLOT)
    out = model(
        features=features,
        image_rows=torch.arange(rows),
        input_ids=torch.cat([slots, tokens], 1),
        attention_mask=torch.cat([torch.ones(rows, prefix), tensors["input.text_mask"]], 1),
        labels=torch.cat([torch.full_like(slots, IGNORE), tokens], 1),
        # The reference ignores token id 0, padding and real, in its loss.
        weights=torch.cat([torch.zeros(rows, prefix), (tokens != 0).float()], 1),
    )
    embeds = model.image_embeddings(features=features)
    logits = out.logits.view(rows, length, -1)
    loss = (F.cross_entropy(out.logits, out.labels, reduction="none") * out.weights).sum()
    loss = loss / out.weights.sum()
    loss.backward()

    torch.testing.assert_close(embeds, tensors["output.prefix_embeds"], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, tensors["output.caption_logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(loss[None], tensors["output.loss"], atol=1e-5, rtol=0)
    gradients = {name: value for name, value in tensors.items() if name.startswith("grad.")}
    assert len(gradients) == {"mlp": 4, "transformer": 39}[kind]
    for name, expected in gradients.items():
        got = model.st.get_parameter(mapper_name(name.removeprefix("grad.clip_project."))).grad
        assert got is not None
        assert (got - expected).norm() <= 1e-4 * expected.norm(), name


def recipe(folder: Path, **changes: Any) -> Config:
    tiny.gpt2().save_pretrained(folder)
    st = STConfig(prefix_length=tiny.PREFIX)
    cfg = Config(llm=LLMConfig(path=str(folder)), st=st)
    cfg.data.max_tokens, cfg.evaluate.max_new_tokens = 20, 20
    for key, value in changes.items():
        setattr(cfg, key, value)
    return cfg


def test_build_gives_the_same_weights_again_and_names_its_parts(tmp_path: Path) -> None:
    cfg = recipe(tmp_path)
    build = {"dtype": torch.float32, "placement": Placement(), "with_encoder": False}
    first = family("clipcap").build(cfg, **build, feature_width=tiny.FEATURE)
    torch.rand(3)
    second = clipcap.build(cfg, **build, feature_width=tiny.FEATURE)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    assert set(clipcap.parts(first)) == {"st", "llm"}
    assert first.image_embeddings(features=torch.zeros(2, tiny.FEATURE)).shape == (2, 3, 16)


def test_build_with_the_encoder_takes_its_width_and_one_dtype(tmp_path: Path) -> None:
    cfg = recipe(tmp_path, encoder=EncoderConfig(arch="RN50", pretrained=None))
    torch.manual_seed(0)
    tower = torch.nn.Conv2d(3, 5, 8)
    encoder = clipcap.ImageEncoder(torch.nn.Sequential(tower, torch.nn.Flatten()), 5)
    model = clipcap.build(
        cfg, dtype=torch.bfloat16, placement=Placement(), with_encoder=True, encoder=encoder
    )
    assert set(clipcap.parts(model)) == {"encoder", "st", "llm"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.image_embeddings(torch.randn(2, 3, 8, 8)).shape == (2, 3, 16)


def test_rows_longer_than_the_context_are_refused(tmp_path: Path) -> None:
    cfg = recipe(tmp_path)
    cfg.data.max_tokens = 30
    config = clipcap.load_llm_config(cfg.llm)
    with pytest.raises(ConfigError, match=r"data\.max_tokens: 30 .* at most 29 fit"):
        clipcap.check(cfg, config)
    cfg.data.max_tokens, cfg.evaluate.max_new_tokens = 29, 30
    with pytest.raises(ConfigError, match=r"evaluate\.max_new_tokens"):
        clipcap.check(cfg, config)


def test_before_the_target_are_slots_for_an_image_and_the_prompt() -> None:
    before = clipcap.layout(Config(st=STConfig(prefix_length=2)), None)
    assert before([], True) == [IMAGE_SLOT, IMAGE_SLOT]
    assert before([5, 6], True) == [IMAGE_SLOT, IMAGE_SLOT, 5, 6]
    assert before([5, 6], False) == [5, 6]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_trains_by_default_can_be_named_by_a_segment(name: str) -> None:
    for settings in ({}, {"early_layers": 1, "bias_scale": True}):
        cfg = Config(family=name, llama_adapter=LlamaAdapterConfig(**settings))
        for phase in ("st_align", "llm_tune"):
            trained = family(name).trains(cfg, phase)
            assert trained and set(trained) <= set(PARTS.get(name, ("llm",)))


def test_an_unknown_family_names_the_known_ones() -> None:
    assert "clipcap" in FAMILIES
    with pytest.raises(ConfigError, match="nobody; choose one of clipcap"):
        family("nobody")
