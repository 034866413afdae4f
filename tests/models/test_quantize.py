"""Frozen weights in 8 and 4 bits: near the full ones, and what is beside them trains as ever."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig, LlamaForCausalLM, PreTrainedModel
from transformers.integrations.bitsandbytes import dequantize_bnb_weight

from pipeline.assemble import overlay_parts
from pipeline.config import (
    Config,
    LavinConfig,
    LlamaAdapterConfig,
    LLMConfig,
    LLMTuneConfig,
    LoRAConfig,
    MMAdapterConfig,
    STConfig,
)
from pipeline.errors import CheckpointError, ConfigError
from pipeline.models import quantize
from pipeline.models.families import family
from pipeline.models.llm import load_llm
from pipeline.models.lora import stable_name
from pipeline.models.multimodal import IGNORE, IMAGE_SLOT, MultimodalLM
from pipeline.models.placement import WHOLE, Blueprint
from pipeline.models.quantize import is_quantized, quantized_sizes
from pipeline.phases import Segment, part_groups
from tests.models import tiny
from tests.models.test_official_meta import llama as meta_llama
from tests.models.test_official_meta import theirs, write

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (the extra `quantize`)")

BITS = pytest.mark.parametrize("bits", ["8bit", "4bit"])
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
# Relative errors: of a weight, and of what is computed with the rounded weights (8 bits round what
# goes in, too).
ROUNDED = {"8bit": 0.01, "4bit": 0.12}
COMPUTED = {"8bit": 0.05, "4bit": 1e-5}


def wide(name: str) -> PreTrainedModel:
    """Of a width that 4 bits can be computed in on a CPU."""
    if name == "gpt2":
        return tiny.gpt2(n_embd=64)
    heads = {"head_dim": 16} if name == "qwen3" else {}
    return tiny.DECODERS[name](hidden_size=64, intermediate_size=128, **heads)


def loaded(folder: Path, bits: str, **changes: Any) -> PreTrainedModel:
    cfg = LLMConfig(path=str(folder), quantize=bits, **changes)
    return load_llm(cfg, dtype=torch.float32, placement=WHOLE, seed=0)


def distance(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@BITS
@pytest.mark.parametrize("name", sorted(tiny.DECODERS))
def test_weights_are_near_the_full_ones_and_outputs_are_theirs(
    tmp_path: Path, name: str, bits: str
) -> None:
    rounded = wide(name)
    rounded.save_pretrained(tmp_path)
    llm = loaded(tmp_path, bits)
    seen = 0
    for key, module in llm.named_modules():
        if is_quantized(getattr(module, "weight", torch.empty(0))):
            seen += 1
            value = dequantize_bnb_weight(module.weight, getattr(module, "state", None))
            weight = rounded.get_submodule(key).weight.detach()
            value = value.T if name == "gpt2" else value
            assert 0 < distance(value, weight) < ROUNDED[bits], key
            weight.copy_(value)
    assert seen == 2 * (4 if name == "gpt2" else 7)  # the head is not among them
    with torch.no_grad():
        assert distance(llm(IDS).logits, rounded(IDS).logits) < COMPUTED[bits]
    assert not llm.training


@BITS
@pytest.mark.parametrize("name", sorted(tiny.DECODERS))
def test_what_a_plan_counts_is_what_is_held(tmp_path: Path, name: str, bits: str) -> None:
    wide(name).save_pretrained(tmp_path)
    lora = LoRAConfig(rank=2)
    held = [each for each in loaded(tmp_path, bits, lora=lora).parameters() if is_quantized(each)]
    sketch = load_llm(
        LLMConfig(path=str(tmp_path), quantize=bits, lora=lora),
        dtype=torch.float32,
        placement=Blueprint(),
        seed=0,
    )
    elements, size = quantized_sizes(sketch, bits)
    assert size == sum(held_bytes(each) for each in held)
    # Everything but embeddings, head, norms and biases.
    assert elements == sum(
        each.numel()
        for key, each in sketch.named_parameters()
        if each.dim() == 2 and not any(part in key for part in ("lora", "embed", "wte", "wpe"))
        if each is not sketch.get_output_embeddings().weight
    )
    assert quantized_sizes(sketch, "none") == (0, 0.0)


def held_bytes(parameter: Any) -> int:
    """Codes and scales of a quantised parameter."""
    if not hasattr(parameter, "quant_state"):
        return parameter.nbytes + parameter.SCB.nbytes
    state = parameter.quant_state
    outer = (state.state2.absmax, state.state2.code, state.offset)
    return sum(each.nbytes for each in (parameter, state.absmax, state.code, *outer))


def recipe(folder: Path, name: str, bits: str) -> Config:
    adapter = MMAdapterConfig(hidden=4, dropout=0.0)
    config = Config(
        family=name,
        llm=LLMConfig(path=str(folder), quantize=bits),
        st=STConfig(prefix_length=1, hidden=8),
        lavin=LavinConfig(adapter=adapter, image_layers=[1], visual_hidden=4),
        llama_adapter=LlamaAdapterConfig(layers=2, prompt_length=3, bias_scale=True),
    )
    config.data.task, config.data.max_tokens, config.evaluate.max_new_tokens = "scienceqa", 20, 20
    if name == "clipcap":
        config.llm.lora = LoRAConfig(rank=2)
    return config


TRAINED = {
    "clipcap": ("st", "llm"),
    "lavin": ("st", "adapters"),
    "llama_adapter": ("st", "prompts", "affine", "norms"),
}
FAMILY = pytest.mark.parametrize("name", sorted(TRAINED))


def build(config: Config) -> MultimodalLM:
    """A quantised model in which the family's parts train."""
    model = family(config.family).build(
        config,
        dtype=torch.float32,
        placement=WHOLE,
        with_encoder=False,
        feature_width=tiny.FEATURE,
    )
    parts = family(config.family).parts(model)
    part_groups(parts, Segment(0, TRAINED[config.family], 0, 1, 1.0), LLMTuneConfig())
    if config.family == "llama_adapter":
        with torch.no_grad():  # through closed gates the ST learns nothing
            for each in model.adaption.gates():
                each.fill_(0.5)
    return model.train()


def batch(name: str) -> dict[str, Tensor]:
    """A row with an image, and one of text alone."""
    slots = [] if name == "llama_adapter" else [IMAGE_SLOT]
    ids = torch.tensor([[1, *slots, 7, 4, 9, 36], [1, 5, *[8 for _ in slots], 2, 3, 36]])
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < 3, IGNORE)
    torch.manual_seed(2)
    shape = (1, 1, tiny.FEATURE) if name == "lavin" else (1, tiny.FEATURE)
    return {
        "features": torch.randn(shape),
        "image_rows": torch.tensor([0, -1]),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "weights": torch.ones(ids.shape),
    }


def loss_of(model: MultimodalLM, rows: dict[str, Tensor]) -> Tensor:
    out = model(**rows)
    return F.cross_entropy(out.logits, out.labels)


@BITS
@FAMILY
def test_training_changes_what_trains_and_nothing_else(
    tmp_path: Path, name: str, bits: str
) -> None:
    wide("qwen2").save_pretrained(tmp_path)
    config, rows = recipe(tmp_path, name, bits), batch(name)
    model = build(config)
    before = {key: each.detach().clone() for key, each in model.named_parameters()}
    trained = {key: each for key, each in model.named_parameters() if each.requires_grad}
    assert not any(is_quantized(each) for each in trained.values())
    assert any(is_quantized(each) for each in model.llm.parameters())
    optimizer = torch.optim.AdamW(trained.values(), lr=0.02)
    losses = []
    for _ in range(8):
        loss = loss_of(model, rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {k for k, each in model.named_parameters() if not torch.equal(each, before[k])}
    assert changed == {key for key, each in trained.items() if each.grad is not None}
    assert len(changed) > 0.9 * len(trained)

    exported = {stable_name(key): each.detach().clone() for key, each in trained.items()}
    again = build(config)
    assert distance(again.eval()(**rows).logits, model.eval()(**rows).logits) > 1e-3
    overlay_parts(again, exported, WHOLE)
    torch.testing.assert_close(again(**rows).logits, model(**rows).logits)


@BITS
def test_gradients_after_a_validation_are_those_before_it(tmp_path: Path, bits: str) -> None:
    """bitsandbytes orders 4-bit weights anew for inference on CPUs with AVX512-BF16."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    tiny.llama(**sizes).save_pretrained(tmp_path)
    llm = loaded(tmp_path, bits).requires_grad_(False)
    embeds = torch.randn(2, 6, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def gradient() -> Tensor:
        logits = llm(inputs_embeds=embeds, use_cache=False).logits
        (found,) = torch.autograd.grad(logits.pow(2).sum(), embeds)
        return found

    before = gradient()
    with torch.no_grad():
        llm(IDS)
        llm.generate(IDS, max_new_tokens=2, do_sample=False, eos_token_id=36, pad_token_id=0)
    torch.testing.assert_close(gradient(), before)


@pytest.mark.parametrize("shards", [1, 2])
@BITS
def test_metas_own_weights_are_quantised_as_those_of_transformers(
    tmp_path: Path, bits: str, shards: int
) -> None:
    folders = {name: tmp_path / name for name in ("meta", "transformers")}
    folders["meta"].mkdir()
    original: LlamaForCausalLM = meta_llama(hidden_size=64, intermediate_size=128)
    write(folders["meta"], theirs(original), shards, dim=64)
    original.config.rope_parameters = {"rope_type": "default", "rope_theta": 500.0}
    original.save_pretrained(folders["transformers"])
    first, second = (loaded(each, bits) for each in folders.values())
    with torch.no_grad():
        torch.testing.assert_close(first(IDS).logits, second(IDS).logits)


def test_weights_in_files_that_lack_some_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "meta"
    folder.mkdir()
    tensors = theirs(meta_llama())
    del tensors["layers.1.ffn_norm.weight"]
    write(folder, tensors, 1)
    with pytest.raises(CheckpointError, match=r"lacks .*post_attention_layernorm"):
        loaded(folder, "4bit")


def test_trained_values_of_quantised_weights_are_refused(tmp_path: Path) -> None:
    """An export of a language model that trained in full does not fit."""
    wide("qwen2").save_pretrained(tmp_path)
    model = build(recipe(tmp_path, "lavin", "4bit"))
    name = "llm.model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(CheckpointError, match=r"q_proj.weight, which llm\.quantize holds in few"):
        overlay_parts(model, {name: torch.zeros(64, 64)}, WHOLE)


def test_adapters_are_not_folded_into_quantised_weights(tmp_path: Path) -> None:
    wide("qwen2").save_pretrained(tmp_path)
    model: Any = build(recipe(tmp_path, "lavin", "8bit"))
    with pytest.raises(ConfigError, match=r"Linear8bitLt; .*llm\.quantize=none"):
        model.fold(has_image=True)


def test_widths_that_bitsandbytes_computes_wrongly_on_cpus_are_refused(tmp_path: Path) -> None:
    tiny.llama().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"q_proj reads 16 numbers, .*; use 8bit, or a GPU"):
        loaded(tmp_path, "4bit")
    loaded(tmp_path, "8bit")


def test_what_is_no_language_model_is_refused(tmp_path: Path) -> None:
    CLIPVisionConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no causal language model"):
        loaded(tmp_path, "4bit")


def test_without_bitsandbytes_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide("qwen2").save_pretrained(tmp_path)
    monkeypatch.setattr(quantize, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ConfigError, match=r"llm\.quantize=4bit: .*pip install -U bitsandbytes"):
        loaded(tmp_path, "4bit")
