"""Adaption prompts: the reference's numbers, every architecture, caches, beams, recomputation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.models.adaption import AdaptionPrompts, EarlyPrompt, LatePrompt
from pipeline.models.decoder import decoder
from pipeline.models.official_meta import rename
from tests.models import tiny

GOLDEN = Path(__file__).parents[1] / "golden" / "llama_adapter_v1_text.safetensors"
EVERY = pytest.mark.parametrize("name", sorted(tiny.DECODERS))


def adapted(llm: Any, *, layers: int = 2, early: int = 0, gates: float = 1.0) -> AdaptionPrompts:
    """Prompts attached to a frozen language model; gates are random, times `gates`."""
    torch.manual_seed(4)
    layered = decoder(llm.requires_grad_(False))
    prompts = AdaptionPrompts(
        layered, layers=layers, length=3, early_layers=early, early_length=2 if early else 1
    )
    with torch.no_grad():
        for name, each in prompts.named_parameters():
            if name.endswith("gate"):
                each.copy_(gates * torch.randn_like(each))
    prompts.attach(llm, layered)
    return prompts


def test_outputs_loss_and_gradients_equal_the_reference() -> None:
    with safe_open(GOLDEN, "pt") as file:
        sizes = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")}
    config = LlamaConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["dim"],
        intermediate_size=sizes["ffn_dim"],
        num_hidden_layers=sizes["n_layers"],
        num_attention_heads=sizes["n_heads"],
        rms_norm_eps=sizes["norm_eps"],
    )
    llm = LlamaForCausalLM(config).eval().requires_grad_(False)
    llm.load_state_dict(meta_to_transformers(weights, sizes["n_heads"]))
    layered = decoder(llm)
    count, length = sizes["adapter_layers"], sizes["adapter_len"]
    prompts = AdaptionPrompts(layered, layers=count, length=length)
    prompts.load_state_dict(ours(weights, count))
    prompts.attach(llm, layered)

    logits = llm(tensors["input.tokens"]).logits
    labels = tensors["input.labels"]
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=0)
    loss.backward()
    torch.testing.assert_close(logits, tensors["output.logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(loss[None], tensors["output.loss"], atol=1e-5, rtol=0)
    gradients = {k.removeprefix("grad."): v for k, v in tensors.items() if k.startswith("grad.")}
    expected = ours(gradients, count)
    assert expected.keys() == dict(prompts.named_parameters()).keys()
    for name, each in prompts.named_parameters():
        assert each.grad is not None
        assert (each.grad - expected[name]).norm() <= 1e-4 * expected[name].norm(), name


def meta_to_transformers(weights: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Meta's names and interleaved RoPE -> transformers' names and half-split RoPE."""
    named = {}
    for name, value in weights.items():
        if "gate" in name or "adapter_query" in name:
            continue
        if name.endswith(("wq.weight", "wk.weight")):
            value = value.view(heads, -1, 2, value.shape[1]).transpose(1, 2).reshape(value.shape)
        named[rename(name)] = value
    return named


def ours(tensors: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The reference's adapter names -> those of AdaptionPrompts."""
    queries = tensors["adapter_query.weight"].chunk(layers)
    numbers = sorted(int(name.split(".")[1]) for name in tensors if name.endswith("gate"))
    gates = [tensors[f"layers.{n}.attention.gate"].flatten() for n in numbers[-layers:]]
    named = {f"late.{i}.prompt": each for i, each in enumerate(queries)}
    return {**named, **{f"late.{i}.gate": each for i, each in enumerate(gates)}}


@EVERY
@pytest.mark.parametrize("early", [0, 1])
def test_closed_gates_leave_the_language_model_as_it_was(name: str, early: int) -> None:
    llm, ids = tiny.DECODERS[name](), torch.tensor([[1, 2, 3], [4, 5, 6]])
    before = llm(ids).logits
    prompts = adapted(llm, layers=1, early=early, gates=0.0)
    with prompts.showing(torch.randn(1, 2 if early else 1, tiny.WIDTH), torch.tensor([0, -1])):
        after = llm(ids).logits
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)
    with torch.no_grad():
        prompts.late[0].gate.fill_(1.0)
    assert (llm(ids).logits - before).abs().max() > 1e-3


@EVERY
def test_grouped_heads_attend_as_an_explicit_softmax_does(name: str) -> None:
    llm = tiny.DECODERS[name]()
    prompts = adapted(llm, layers=1)
    layered = decoder(llm)
    last = layered.layers[-1]
    seen: dict[str, Tensor] = {}
    out = last.attention.o_proj if name != "gpt2" else last.attention.c_proj
    out.register_forward_pre_hook(lambda _m, args: seen.update(mixed=args[0]))
    last.projections[0].register_forward_hook(lambda _m, _a, made: seen.setdefault("query", made))
    ids = torch.tensor([[1]])  # at position 0: no rotation, and the text sees only itself
    llm(ids)
    mixed, made = seen["mixed"], seen["query"]
    query = made[..., : layered.heads * layered.head_dim].view(layered.heads, layered.head_dim)
    if name == "qwen3":
        query = last.attention.q_norm(query)
    late = prompts.late[0]
    keys, values = last.keys_values(late.prompt[None])
    group = layered.heads // layered.kv_heads
    found = []
    for head in range(layered.heads):
        scores = keys[0, head // group] @ query[head] / layered.head_dim**0.5
        found.append(late.gate[head].tanh() * scores.softmax(0) @ values[0, head // group])
    with torch.no_grad():
        late.gate.zero_()
    llm(ids)
    torch.testing.assert_close(mixed - seen["mixed"], torch.cat(found)[None, None])


def test_an_image_is_added_to_every_prompt_and_a_row_without_one_keeps_the_plain_ones() -> None:
    torch.manual_seed(0)
    late, visual = LatePrompt(3, 4, 2, sees_images=True), torch.randn(2, 1, 4)
    prompts, gates = late(visual)
    assert torch.equal(prompts[0], late.prompt)
    assert torch.equal(prompts[1:], late.prompt + visual.expand(-1, 3, -1))
    assert gates.shape == (3, 2)
    assert late(None)[0].shape == (1, 3, 4)
    assert LatePrompt(3, 4, 2, sees_images=False)(visual)[0].shape == (1, 3, 4)


def test_early_prompts_are_the_images_own_embeddings_and_nothing_for_a_row_without_one() -> None:
    early, visual = EarlyPrompt(2, 4, 3), torch.randn(1, 2, 4)
    with torch.no_grad():
        early.gate.fill_(0.5)
    prompts, gates = early(visual)
    assert torch.equal(prompts[1], visual[0]) and not prompts[0].any()
    assert not gates[0].any() and torch.equal(gates[1], early.gate.tanh())
    # Without any image the gate still gets a gradient, of zero: partitioned ranks all reduce it.
    early(None)[1].sum().backward()
    assert early.gate.grad is not None and not early.gate.grad.any()


@EVERY
@pytest.mark.parametrize("early", [0, 1])
def test_each_row_of_a_batch_is_as_if_it_were_alone(name: str, early: int) -> None:
    llm = tiny.DECODERS[name]()
    prompts = adapted(llm, layers=1, early=early)
    visual = torch.randn(2, 2 if early else 1, tiny.WIDTH)
    ids, rows = torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([1, -1, 0])
    with prompts.showing(visual, rows):
        together = llm(ids).logits
    alone = []
    for i, image in enumerate(rows.tolist()):
        with prompts.showing(
            None if image < 0 else visual[image][None], rows[i : i + 1].clamp(max=0)
        ):
            alone.append(llm(ids[i : i + 1]).logits)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0], llm(ids).logits[0], atol=1e-3)  # outside: no image


@EVERY
def test_recomputed_activations_give_equal_gradients(name: str) -> None:
    results = []
    for saving in (False, True):
        llm = tiny.DECODERS[name]()
        prompts = adapted(llm, layers=1, early=1)
        runs: list[int] = []
        decoder(llm).layers[0].norm.register_forward_hook(lambda *_, seen=runs: seen.append(1))
        if saving:
            llm.activation_checkpointing_enable()
            llm.train()
        visual = torch.randn(1, 2, tiny.WIDTH, generator=torch.Generator().manual_seed(5))
        visual.requires_grad_()
        with prompts.showing(visual, torch.tensor([0, -1])):
            loss = llm(torch.tensor([[1, 2, 3], [4, 5, 6]]), use_cache=False).logits.square().sum()
        loss.backward()  # after the images are gone, as in training
        assert len(runs) == 1 + saving
        results.append([visual.grad, *(each.grad for each in prompts.parameters())])
    assert all(each is not None and each.any() for each in results[0])
    torch.testing.assert_close(results[1], results[0])


@EVERY
@torch.no_grad()
@pytest.mark.parametrize("early", [0, 1])
def test_decoding_keeps_the_prompts_keys_and_equals_teacher_forcing(name: str, early: int) -> None:
    llm = tiny.DECODERS[name]()
    prompts = adapted(llm, layers=1, early=early)
    layered = decoder(llm)
    calls = {layer.index: 0 for layer in layered.layers}
    for layer in layered.layers:
        key = layer.projections[len(layer.projections) // 2]  # the key's, or the one for all
        key.register_forward_hook(lambda *_, at=layer.index: calls.update({at: calls[at] + 1}))
    visual, rows = torch.randn(1, 2 if early else 1, tiny.WIDTH), torch.tensor([0, -1])
    ids = torch.tensor([[0, 0, 7], [4, 5, 6]])  # the first is padded on the left
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]])
    with prompts.showing(visual, rows):
        out = llm.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=5,
            min_new_tokens=5,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert calls == {0: 5 + early, 1: 6}  # 5 tokens, and once for the prompts of an adapted layer
    stepwise = torch.stack(out.logits, 1)
    for row, start in ((0, 2), (1, 0)):
        text = out.sequences[row : row + 1, start:]
        with prompts.showing(visual if row == 0 else None, rows[row : row + 1]):
            forced = llm(text).logits[:, 2 - start : -1]
        torch.testing.assert_close(stepwise[row : row + 1], forced, atol=1e-5, rtol=0)


def test_published_size() -> None:
    """1.2 M trained parameters of LLaMA-7B; SOURCE: the paper's Table 1."""
    with torch.device("meta"):
        llm = LlamaForCausalLM(LlamaConfig())  # 7B is the default
        prompts = AdaptionPrompts(decoder(llm), layers=30, length=10)
    assert sum(each.numel() for each in prompts.parameters()) == 1_229_760
