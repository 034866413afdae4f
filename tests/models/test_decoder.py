"""Attaching to language models: the right modules of each architecture, and their attention."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from pipeline.errors import ConfigError
from pipeline.models.decoder import check_decoder, decoder, use_attention
from tests.models import tiny

EVERY = pytest.mark.parametrize("name", sorted(tiny.DECODERS))


@EVERY
def test_the_norms_output_is_what_the_attention_reads(name: str) -> None:
    llm = tiny.DECODERS[name]()
    found = decoder(llm)
    seen: dict[str, Tensor] = {}
    layer = found.layers[1]
    layer.norm.register_forward_hook(lambda _m, _a, out: seen.update(norm=out))
    layer.projections[0].register_forward_pre_hook(lambda _m, args: seen.update(read=args[0]))
    llm(torch.tensor([[1, 2, 3]]))
    assert torch.equal(seen["norm"], seen["read"])
    assert seen["read"].shape == (1, 3, found.hidden_size)
    assert all(each.attention.layer_idx == each.index for each in found.layers)


@EVERY
def test_keys_and_values_are_those_that_enter_the_attention_but_for_positions(name: str) -> None:
    llm = tiny.DECODERS[name]()
    found = decoder(llm)
    seen: dict[str, Tensor] = {}

    def keep(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any):
        if module is found.layers[0].attention:
            seen.update(query=query, key=key, value=value)
        return AttentionInterface()["sdpa"](module, query, key, value, *args, **kwargs)

    use_attention(llm, "test_keep", keep)
    found.layers[0].norm.register_forward_hook(lambda _m, _a, out: seen.update(norm=out))
    llm(torch.tensor([[4, 5]]))
    key, value = found.layers[0].keys_values(seen["norm"])
    assert key.shape == value.shape == (1, found.kv_heads, 2, found.head_dim)
    assert seen["query"].shape == (1, found.heads, 2, found.head_dim)
    torch.testing.assert_close(value, seen["value"])
    torch.testing.assert_close(key[:, :, 0], seen["key"][:, :, 0])  # at position 0 RoPE is nothing


@EVERY
def test_another_attention_gets_the_masks_of_sdpa_and_the_forwards_keywords(name: str) -> None:
    llm = tiny.DECODERS[name]()
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    expected = [llm(ids).logits, llm(ids, attention_mask=(ids > 0).long()).logits]
    seen: list[tuple[bool, str]] = []

    def told(module: Any, *args: Any, word: str = "", **kwargs: Any):
        seen.append((args[3] is None, word))
        return AttentionInterface()["sdpa"](module, *args, **kwargs)

    use_attention(llm, "test_told", told)
    plain = llm(ids, word="a").logits
    padded = llm(ids, attention_mask=(ids > 0).long(), word="b").logits
    torch.testing.assert_close([plain, padded], expected)
    layers = len(decoder(llm).layers)
    assert seen == [(True, "a")] * layers + [(False, "b")] * layers


def test_an_unsupported_architecture_is_refused_by_name_with_the_supported_ones() -> None:
    llm: PreTrainedModel = tiny.gemma2()
    with pytest.raises(ConfigError, match=r"a gemma2.* are not supported.*gpt2, llama, mistral"):
        decoder(llm)
    check_decoder(tiny.llama().config)
