"""Both families on the towers that open_clip gives, and on language models that are not known."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BloomConfig, PretrainedConfig, T5Config

from pipeline.config import (
    Config,
    EncoderConfig,
    LavinConfig,
    LlamaAdapterConfig,
    LLMConfig,
    MMAdapterConfig,
    STConfig,
)
from pipeline.errors import ConfigError
from pipeline.models import lavin
from pipeline.models.encoder import ImageEncoder
from pipeline.models.families import family
from pipeline.models.llm import load_llm_config
from pipeline.models.multimodal import IGNORE, IMAGE_SLOT, MultimodalLM
from pipeline.models.placement import Placement
from tests.models import tiny, towers

FAMILIES = pytest.mark.parametrize("name", ["lavin", "llama_adapter"])
KINDS = pytest.mark.parametrize("kind", ["clip", "siglip"])
ADAPTER = MMAdapterConfig(hidden=4, temperature=0.5, dropout=0.0)


def recipe(folder: Path, name: str) -> Config:
    tiny.llama().save_pretrained(folder)
    cfg = Config(
        family=name,
        encoder=EncoderConfig(scales=[1, 2] if name == "llama_adapter" else [1]),
        st=STConfig(prefix_length=1, hidden=8),
        llm=LLMConfig(path=str(folder)),
        lavin=LavinConfig(adapter=ADAPTER, image_layers=[1, 3], visual_hidden=8),
        llama_adapter=LlamaAdapterConfig(layers=2, prompt_length=3),
    )
    cfg.data.max_tokens = cfg.evaluate.max_new_tokens = 12
    return cfg


def build(folder: Path, name: str, kind: str) -> MultimodalLM:
    """A model of which nothing is at zero, with its base models frozen."""
    cfg, chosen = recipe(folder, name), family(name)
    visual = towers.visual(kind)
    width = 16 if kind == "siglip" else 6
    encoder = chosen.tower(cfg, ImageEncoder(visual, width, scales=cfg.encoder.scales))
    options: dict[str, Any] = {"dtype": torch.float32, "placement": Placement()}
    model = chosen.build(cfg, with_encoder=True, encoder=encoder, **options)
    torch.manual_seed(5)
    base = {id(each) for part in (visual, model.llm) for each in part.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) not in base)
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch(name: str) -> dict[str, Tensor]:
    """The second image, the first, and text alone."""
    slots = [IMAGE_SLOT] * 2 if name == "lavin" else [3, 3]
    ids = torch.tensor([[1, *slots, 4, 9, 36], [1, *slots, 7, 5, 36], [1, 2, 5, 8, 2, 36]])
    size = towers.SIZE * (2 if name == "llama_adapter" else 1)
    torch.manual_seed(2)
    labels = ids.clone()
    labels[:, :3] = IGNORE
    return {
        "images": torch.randn(2, 3, size, size),
        "image_rows": torch.tensor([1, 0, -1]),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "weights": torch.ones(ids.shape),
    }


@FAMILIES
@KINDS
def test_images_reach_their_own_rows_and_gradients_all_that_trains(
    tmp_path: Path, name: str, kind: str
) -> None:
    model, rows = build(tmp_path, name, kind), batch(name)
    out = model.train()(**rows)
    F.cross_entropy(out.logits, out.labels).backward()
    for key, each in model.named_parameters():
        assert (each.grad is not None and bool(each.grad.any())) == each.requires_grad, key
    other = rows | {"images": rows["images"].clone()}
    other["images"][0] += 1  # the second row's
    changed = (model.eval()(**other).logits - model(**rows).logits).abs().amax(1).view(3, 3)
    assert changed[1].max() > 1e-4
    assert changed[[0, 2]].max() < 1e-5


@FAMILIES
@KINDS
@torch.no_grad()
def test_generation_from_images_is_argmax_without_a_cache(
    tmp_path: Path, name: str, kind: str
) -> None:
    model, rows = build(tmp_path, name, kind), batch(name)
    prompt = {key: rows[key] for key in ("images", "image_rows")}
    ids = rows["input_ids"][:, :4]
    ends = {"max_new_tokens": 3, "eos_token_id": tiny.VOCAB, "pad_token_id": 0}
    new = model.generate(**prompt, input_ids=ids, attention_mask=torch.ones_like(ids), **ends)
    for _ in range(3):
        longer = torch.cat([ids, torch.zeros(3, 1, dtype=torch.long)], 1)
        labels = torch.full_like(longer, IGNORE)
        labels[:, -1] = 0
        logits = model(
            **prompt,
            input_ids=longer,
            attention_mask=torch.ones_like(longer),
            labels=labels,
            weights=torch.ones(longer.shape),
        ).logits
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(new, ids[:, 4:])


def test_adapters_are_not_put_into_a_tower_without_transformer_blocks() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.arch: a ModifiedResNet has no blocks .* ViT"):
        lavin.tower(Config(), ImageEncoder(towers.visual("resnet"), 6))


@pytest.mark.parametrize("name", ["EvaBlockPostNorm", "ResPostBlock"])
def test_blocks_that_normalise_behind_their_attention_are_refused(name: str) -> None:
    visual: Any = towers.visual("siglip")
    for block in visual.trunk.blocks:
        block.__class__ = type(name, (type(block),), {})
    with pytest.raises(ConfigError, match="a TimmModel has no blocks"):
        lavin.tower(Config(), ImageEncoder(visual, 16))


@FAMILIES
@pytest.mark.parametrize("config", [BloomConfig(), T5Config()])
def test_other_language_models_are_refused_by_name_with_those_that_will_do(
    tmp_path: Path, name: str, config: PretrainedConfig
) -> None:
    config.save_pretrained(tmp_path)
    cfg = Config(family=name, llm=LLMConfig(path=str(tmp_path)), st=STConfig(prefix_length=1))
    known = "gpt2, llama, mistral, qwen2, qwen3"
    with pytest.raises(ConfigError, match=rf"llm\.path: .* {config.model_type} .* {known}"):
        family(name).check(cfg, load_llm_config(cfg.llm))
