"""LoRA adapters: what they change, what trains, their names in exports, folding them in."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pipeline.assemble import overlay
from pipeline.config import LLMConfig, LoRAConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.llm import check_adapters, load_llm
from pipeline.models.lora import (
    add_adapters,
    check_settings,
    is_adapter,
    merge,
    stable_name,
    trainable,
)
from pipeline.models.placement import Placement
from tests.models import tiny

MODELS = [tiny.gpt2, tiny.llama, lambda: tiny.llama(tie_word_embeddings=True), tiny.gemma2]
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


def adapted(make: Callable[[], PreTrainedModel], **changes: object) -> PreTrainedModel:
    llm = make()
    cfg = LoRAConfig(**{"rank": 4, "alpha": 8, **changes})
    add_adapters(llm, cfg, placement=Placement(), seed=0)
    return llm


def disturb(llm: nn.Module) -> None:
    """Gives the adapters the values that training would have given them."""
    torch.manual_seed(3)
    for each in trainable(llm):
        nn.init.normal_(each, std=0.3)


@pytest.mark.parametrize("targets", [None, ["all-linear"]])
@pytest.mark.parametrize("make", MODELS)
def test_fresh_adapters_change_nothing_and_trained_ones_do(make, targets) -> None:
    plain, llm = make(), adapted(make, targets=targets)
    assert torch.equal(llm(IDS).logits, plain(IDS).logits)
    disturb(llm)
    assert not torch.allclose(llm(IDS).logits, plain(IDS).logits, atol=1e-2)


@pytest.mark.parametrize("targets", [None, ["all-linear"]])
@pytest.mark.parametrize("make", MODELS)
def test_merged_weights_compute_the_same_and_leave_a_plain_model(
    tmp_path: Path, make, targets
) -> None:
    llm = adapted(make, targets=targets)
    disturb(llm)
    expected = llm(IDS).logits
    merge(llm)
    torch.testing.assert_close(llm(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    plain = make()
    assert [name for name, _ in llm.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert [type(each) for each in llm.modules()] == [type(each) for each in plain.modules()]
    llm.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_generation_and_the_thinned_head_work_with_adapters() -> None:
    llm = adapted(tiny.gpt2)
    disturb(llm)
    model = tiny.multimodal(llm).eval()
    before = model(**tiny.batch()).logits
    batch = tiny.batch()
    prompt = {key: batch[key] for key in ("features", "image_rows", "attention_mask")}
    prompt |= {"image_rows": torch.tensor([1, 0]), "attention_mask": torch.ones(2, 3)}
    asked = {"max_new_tokens": 5, "num_beams": 2, "eos_token_id": 36, "pad_token_id": 36}
    ids = batch["input_ids"][:2, : tiny.PREFIX]
    tokens = model.generate(input_ids=ids, **prompt, **asked)
    merge(model.llm)
    torch.testing.assert_close(model(**tiny.batch()).logits, before, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.generate(input_ids=ids, **prompt, **asked), tokens)


def test_only_adapters_train_and_a_part_without_them_trains_whole() -> None:
    llm = adapted(tiny.gpt2)
    # rank 4, c_attn of 2 layers: 16 -> 48
    assert sum(each.numel() for each in trainable(llm)) == 2 * 4 * (16 + 48)
    plain = tiny.gpt2()
    assert len(trainable(plain)) == len(list(plain.parameters()))


def test_initial_values_depend_on_seed_and_name_alone() -> None:
    torch.manual_seed(1)
    first = adapted(tiny.gpt2).state_dict()
    torch.manual_seed(2)
    again = adapted(tiny.gpt2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    a, b = (first[f"transformer.h.{i}.attn.c_attn.lora_A.default.weight"] for i in (0, 1))
    assert not torch.equal(a, b)
    bound = tiny.WIDTH**-0.5  # of torch's linear layers: 1 / sqrt(inputs)
    assert 0.8 * bound < float(a.abs().max()) <= bound
    assert not first["transformer.h.0.attn.c_attn.lora_B.default.weight"].any()


def test_adapters_take_the_models_dtype() -> None:
    llm = adapted(lambda: tiny.gpt2().bfloat16())
    assert {each.dtype for each in llm.parameters()} == {torch.bfloat16}


def test_dropout_is_for_training_only() -> None:
    llm = adapted(tiny.gpt2, dropout=0.5)
    disturb(llm)
    assert torch.equal(llm(IDS).logits, llm(IDS).logits)
    llm.train()
    assert not torch.equal(llm(IDS).logits, llm(IDS).logits)


def test_names_in_exports_are_the_models_own() -> None:
    llm = adapted(tiny.gpt2)
    names = {stable_name(name) for name, _ in llm.named_parameters()}
    own = {name for name, _ in tiny.gpt2().named_parameters()}
    adapters = {name for name in names if is_adapter(name)}
    assert names - adapters == own
    assert "transformer.h.0.attn.c_attn.lora_A.weight" in adapters
    assert len(adapters) == 4


def exported(llm: nn.Module, *, only_adapters: bool) -> dict[str, torch.Tensor]:
    named = {stable_name(name): each.detach() for name, each in llm.named_parameters()}
    return {f"llm.{n}": t for n, t in named.items() if not only_adapters or is_adapter(n)}


def test_exports_go_in_and_out_whether_or_not_a_layer_is_wrapped() -> None:
    source, target = adapted(tiny.gpt2), adapted(tiny.gpt2)
    disturb(source)
    overlay(target, exported(source, only_adapters=True), "llm.", Placement())
    assert torch.equal(target(IDS).logits, source(IDS).logits)
    tuned, wrapped = tiny.gpt2(), adapted(tiny.gpt2)
    for each in tuned.parameters():
        nn.init.normal_(each, std=0.2)
    overlay(wrapped, exported(tuned, only_adapters=False), "llm.", Placement())
    assert torch.equal(wrapped(IDS).logits, tuned(IDS).logits)


def test_adapters_that_the_recipe_does_not_have_are_refused() -> None:
    export = exported(adapted(tiny.gpt2), only_adapters=True)
    with pytest.raises(CheckpointError, match=r"set llm\.lora to what it was trained with"):
        overlay(tiny.gpt2(), export, "llm.", Placement())
    with pytest.raises(CheckpointError, match=r"\(4, 16\), the model's is \(2, 16\)"):
        overlay(adapted(tiny.gpt2, rank=2), export, "llm.", Placement())


@pytest.mark.parametrize("changes", [{"rank": 0}, {"rank": 2}, {"alpha": 4}])
def test_another_rank_or_scale_is_refused_by_its_numbers(changes: dict[str, int]) -> None:
    made_with = {"rank": 4, "alpha": 8}
    check_settings(made_with, LoRAConfig(rank=4, alpha=8, dropout=0.5), "an/export")
    check_settings(None, LoRAConfig(), "an/export")
    cfg = LoRAConfig(**{"rank": 4, "alpha": 8, **changes})
    with pytest.raises(CheckpointError, match=r"an/export holds adapters with llm\.lora\.rank=4"):
        check_settings(made_with, cfg, "an/export")


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["attn"], "no linear layer attn; name some of c_attn, c_fc, c_proj, or [all-linear]"),
        (["c_attn", "wte"], "no linear layer wte; name some of"),
        (["lm_head"], "no linear layer lm_head"),
        ([], "name some of c_attn"),
    ],
)
def test_wrong_targets_are_answered_with_the_layers_there_are(
    tmp_path: Path, targets: list[str], expected: str
) -> None:
    tiny.gpt2().save_pretrained(tmp_path)
    cfg = LLMConfig(str(tmp_path), lora=LoRAConfig(rank=2, targets=targets))
    # Before any weights are read, and with them.
    for attempt in (
        lambda: check_adapters(cfg, AutoConfig.from_pretrained(tmp_path)),
        lambda: load_llm(cfg, dtype=torch.float32, placement=Placement(), seed=0),
    ):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_an_architecture_without_peft_defaults_asks_for_names() -> None:
    llm = tiny.gpt2()
    llm.config.model_type = "unheard-of"
    with pytest.raises(ConfigError, match="no layers for unheard-of; name some of c_attn"):
        add_adapters(llm, LoRAConfig(rank=2), placement=Placement(), seed=0)


def test_targets_by_a_longer_name_are_fewer_layers() -> None:
    llm = adapted(tiny.gpt2, targets=["mlp.c_proj"])
    wrapped = {
        name.partition(".lora_")[0] for name, _ in llm.named_parameters() if ".lora_" in name
    }
    assert wrapped == {"transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj"}


def test_a_recipes_model_comes_with_its_adapters(tmp_path: Path) -> None:
    tiny.gpt2().save_pretrained(tmp_path)
    cfg = LLMConfig(str(tmp_path), lora=LoRAConfig(rank=2, targets=["all-linear"]))
    llm = load_llm(cfg, dtype=torch.float32, placement=Placement(), seed=0)
    assert torch.equal(llm(IDS).logits, tiny.gpt2()(IDS).logits)
    assert not llm.training and not any(each.training for each in llm.modules())
    assert sum(is_adapter(name) for name, _ in llm.named_parameters()) == 2 * 2 * 4


def test_on_the_meta_device_shapes_come_without_memory() -> None:
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(tiny.gpt2().config)
        add_adapters(llm, LoRAConfig(rank=4), placement=Placement(), seed=0)
    assert {each.device.type for each in llm.parameters()} == {"meta"}
    assert sum(each.numel() for each in trainable(llm)) == 2 * 4 * (16 + 48)
