"""Bias and scale behind linear maps, and the norms of a model, on every architecture."""

import pytest
import torch

from pipeline.models.affine import LinearAffines, norms
from pipeline.models.decoder import decoder
from tests.models import tiny

EVERY = pytest.mark.parametrize("name", sorted(tiny.DECODERS))
IDS = torch.tensor([[1, 2, 3]])


@EVERY
def test_affines_change_nothing_at_first_and_leave_the_weights_their_names(name: str) -> None:
    llm = tiny.DECODERS[name]()
    before, names = llm(IDS).logits, list(llm.state_dict())
    layered = decoder(llm)
    LinearAffines(layered).attach(layered)
    assert torch.equal(llm(IDS).logits, before)
    assert list(llm.state_dict()) == names


@EVERY
def test_an_affine_equals_a_scaled_weight_and_a_shifted_bias(name: str) -> None:
    llm = tiny.DECODERS[name]()
    layered = decoder(llm)
    affines = LinearAffines(layered)
    affines.attach(layered)
    torch.manual_seed(0)
    for each in affines.parameters():
        torch.nn.init.normal_(each)
    got = llm(IDS).logits
    torch.testing.assert_close(folded(name, affines)(IDS).logits, got, atol=1e-4, rtol=1e-4)
    got.sum().backward()
    assert all(each.grad is not None and each.grad.any() for each in affines.layers[1].parameters())


@torch.no_grad()
def folded(name: str, affines: LinearAffines) -> torch.nn.Module:
    """The model with each W and b written as scale * W and scale * (b + bias)."""
    llm = tiny.DECODERS[name]()
    for layer, each in zip(decoder(llm).layers, affines.layers, strict=True):
        weighted = [m for m in layer.module.modules() if hasattr(m, "weight")]
        linears = [m for m in weighted if m.weight.ndim == 2]
        assert len(linears) == len(each)
        for linear, affine in zip(linears, each.values(), strict=True):
            is_conv = name == "gpt2"  # its weights are (in, out)
            linear.weight *= affine.scale if is_conv else affine.scale[:, None]
            old = 0 if linear.bias is None else linear.bias
            linear.bias = torch.nn.Parameter(affine.scale * (old + affine.bias))
    return llm


@pytest.mark.parametrize(
    ("name", "count"), [("gpt2", 5), ("llama", 5), ("mistral", 5), ("qwen2", 5), ("qwen3", 9)]
)
def test_norms_are_all_norms_the_last_one_included(name: str, count: int) -> None:
    found = norms(tiny.DECODERS[name]())
    assert len(found) == count
    assert all(each.weight.ndim == 1 for each in found)
