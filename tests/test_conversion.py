"""What leaves for other libraries: loaded by them, it says what our model says.

And its card tells where it comes from, with its own scores alone.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
)

from pipeline.config import Config, ScratchConfig
from pipeline.conversion import convert
from pipeline.export_files import save_export
from pipeline.models.encoder import ImageEncoder, load_clip
from pipeline.models.families import family
from pipeline.models.multimodal import IMAGE_SLOT, MultimodalLM
from pipeline.models.placement import Placement
from pipeline.models.scratch import create_clip, train_tokenizer
from pipeline.progress import Progress
from pipeline.recipe import load_recipe
from tests.models.tiny import GROUPED

SIZES = ScratchConfig(
    vocab_size=280,
    context_length=16,
    image_size=16,
    patch_size=8,
    vision_width=16,
    vision_layers=2,
    text_width=16,
    text_layers=1,
    embed_dim=8,
    heads=2,
)
TEXT = torch.tensor([[5, 9, 200, 31, 7], [8, 8, 100, 2, 4]])
SLOTS = 2


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP and two small language models, one of which has no place for biases."""
    folder = tmp_path_factory.mktemp("weights")
    tokenizer = train_tokenizer(["some text to learn letters from"] * 5, SIZES.vocab_size)
    create_clip(folder / "clip", SIZES, tokenizer, seed=0)
    sizes = {**GROUPED, "vocab_size": len(tokenizer)}
    configs: dict[str, PretrainedConfig] = {
        "llama": LlamaConfig(**sizes),
        "mistral": MistralConfig(**sizes, sliding_window=None),
    }
    for name, config in configs.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def recipe(weights: Path, name: str, llm: str, *arguments: str) -> Config:
    tower = [f"encoder.arch=local-dir:{weights / 'clip'}", "encoder.pretrained=null"]
    basics = [f"name={name}", f"family={name}", f"llm.path={weights / llm}", "data.max_tokens=16"]
    return load_recipe([*tower, *basics, *arguments])


def lavin(weights: Path, llm: str = "llama") -> Config:
    sizes = ["lavin.image_layers=[1,2]", "lavin.adapter.hidden=4", "lavin.visual_hidden=6"]
    return recipe(weights, "lavin", llm, *sizes, "lavin.adapter.dropout=0")


def llama_adapter(weights: Path, llm: str = "llama") -> Config:
    sizes = ["st.kind=mlp", "st.hidden=6", "st.prefix_length=1", "evaluate.max_new_tokens=4"]
    sizes += ["llama_adapter.layers=1", "llama_adapter.prompt_length=2"]
    return recipe(weights, "llama_adapter", llm, *sizes, "llama_adapter.bias_scale=true")


def trained(config: Config) -> MultimodalLM:
    """A model whose added parts, and one norm, are anything but fresh."""
    tower = load_clip(config.encoder).model.visual
    chosen = family(config.family)
    encoder = chosen.tower(config, ImageEncoder(tower, SIZES.embed_dim))
    model = chosen.build(
        config, dtype=torch.float32, placement=Placement(), with_encoder=True, encoder=encoder
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in exported_names(model):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def exported_names(model: MultimodalLM) -> set[str]:
    """What a phase would hand over: all that is not the base weights, and the last norm."""
    base = ("llm.", "encoder.")
    names = {name for name, _ in model.named_parameters()}
    kept = {name for name in names if not name.startswith(base)}
    kept |= {name for name in names if name.startswith("encoder.adapters.")}
    return kept | {"llm.model.norm.weight"}


def handed_over(model: MultimodalLM, config: Config, folder: Path, **details: Any) -> Path:
    tensors = {n: p.detach() for n, p in model.named_parameters() if n in exported_names(model)}
    said = {"fingerprint": "f1", "phase": "llm_tune", **details}
    target = folder / "runs" / config.name / "llm_tune" / "export"
    save_export(target, tensors, Progress(step=3, records_seen=36), said, config)
    return target


def every_logit(model: MultimodalLM, ids: Tensor, features: Tensor | None = None) -> Tensor:
    """(R, T - 1, V)"""
    rows, length = ids.shape
    with torch.no_grad():
        logits: Tensor = model(
            features=features,
            image_rows=torch.full((rows,), -1) if features is None else torch.arange(rows),
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            labels=torch.zeros_like(ids),
            weights=torch.ones(ids.shape),
        ).logits
    return logits.reshape(rows, length - 1, -1)


def loaded(folder: Path) -> Any:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert len(AutoTokenizer.from_pretrained(folder)) > 0
    return model.eval()


def test_lavins_adapters_leave_merged_for_each_modality(weights: Path, tmp_path: Path) -> None:
    config = lavin(weights)
    model = trained(config)
    said = convert(config, handed_over(model, config, tmp_path), tmp_path / "out")
    for name in ("llm-text/", "llm-image/", "st.safetensors", "adapters.safetensors", "README.md"):
        assert name in said
    plain = loaded(tmp_path / "out" / "llm-text")
    with torch.no_grad():
        theirs = plain(TEXT).logits[:, :-1]
    torch.testing.assert_close(theirs, every_logit(model, TEXT), atol=2e-4, rtol=2e-4)

    ids = TEXT.clone()
    ids[:, 1 : 1 + SLOTS] = IMAGE_SLOT
    features = torch.randn(len(ids), SLOTS, SIZES.vision_width)
    plain = loaded(tmp_path / "out" / "llm-image")
    with torch.no_grad():
        embeds = model.embed(ids, model.image_embeddings(features=features), torch.arange(2))
        theirs = plain(inputs_embeds=embeds).logits[:, :-1]
    torch.testing.assert_close(theirs, every_logit(model, ids, features), atol=2e-4, rtol=2e-4)

    kept = load_file(tmp_path / "out" / "adapters.safetensors")
    parameters = dict(model.named_parameters())
    assert {name.split(".")[0] for name in kept} == {"adapters", "encoder"}
    assert all(torch.equal(kept[name], parameters[name]) for name in kept)


def test_bias_and_scale_leave_merged_and_the_prompts_beside_them(
    weights: Path, tmp_path: Path
) -> None:
    config = llama_adapter(weights)
    model = trained(config)
    convert(config, handed_over(model, config, tmp_path), tmp_path / "out")
    plain = loaded(tmp_path / "out" / "llm")
    with torch.no_grad():
        theirs = plain(TEXT).logits[:, :-1]
        assert not torch.allclose(theirs, every_logit(model, TEXT), atol=1e-2)  # prompts are away
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.zero_()
    torch.testing.assert_close(theirs, every_logit(model, TEXT), atol=2e-4, rtol=2e-4)
    kept = load_file(tmp_path / "out" / "adapters.safetensors")
    assert kept and all(name.startswith("adaption.") for name in kept)
    assert "adaption prompts are not in it" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("make", "kept"), [(lavin, "adapters."), (llama_adapter, "affine.")])
def test_what_an_architecture_has_no_place_for_stays_beside_it(
    weights: Path, tmp_path: Path, make: Any, kept: str
) -> None:
    config = make(weights, "mistral")
    model = trained(config)
    convert(config, handed_over(model, config, tmp_path), tmp_path / "out")
    names = load_file(tmp_path / "out" / "adapters.safetensors").keys()
    assert any(name.startswith(kept) for name in names)
    plain = loaded(tmp_path / "out" / "llm")
    norm = dict(model.named_parameters())["llm.model.norm.weight"]
    assert torch.equal(plain.model.norm.weight, norm)


def test_the_card_says_where_the_model_comes_from(weights: Path, tmp_path: Path) -> None:
    config = llama_adapter(weights)
    data = {"records": 77, "fingerprint": "abcdef0123"}
    export = handed_over(trained(config), config, tmp_path, data=data)
    convert(config, export, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("77 records, fingerprint abcdef0123", "3 steps", "36 records seen", "f1"):
        assert part in card
    assert 'from_pretrained("llm")' in card and "bias_scale: true" in card
    again = load_recipe([f"recipe={tmp_path / 'out' / 'config.yaml'}"])
    assert replace(again, recipe=config.recipe) == config


def test_the_card_has_scores_of_this_export_and_no_others(weights: Path, tmp_path: Path) -> None:
    config = llama_adapter(weights)
    export = handed_over(trained(config), config, tmp_path)
    metrics = {"split": "test", "records": 12, "loss": 1.25, "scores": {"CIDEr": 0.5}}
    place = tmp_path / "runs" / config.name / "evaluate" / "test" / "metrics.json"
    place.parent.mkdir(parents=True)

    def scores(number: int, said: dict[str, Any]) -> str:
        place.write_text(json.dumps(said))
        convert(config, export, tmp_path / f"out{number}")
        card = (tmp_path / f"out{number}" / "README.md").read_text()
        return card.partition("## Scores")[2].partition("## Recipe")[0]

    assert "None: this export was not scored" in scores(1, {**metrics, "export": "/another"})
    said = scores(2, {**metrics, "export": str(export)})
    assert "12 records of the split test" in said
    assert "| CIDEr | 0.5 |" in said and "| loss | 1.25 |" in said
    later = place.stat().st_mtime + 10  # the phase was run again since
    os.utime(export / "export.json", (later, later))
    assert "None: this export was not scored" in scores(3, {**metrics, "export": str(export)})
