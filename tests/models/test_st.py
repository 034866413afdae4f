"""The ST networks' sizes and mistakes; their numbers are held by test_clipcap.py."""

import pytest
import torch

from pipeline.config import STConfig
from pipeline.errors import ConfigError
from pipeline.models.st import build_st, silent


def test_the_default_mlp_has_the_size_of_the_reference() -> None:
    with torch.device("meta"):
        mapper = build_st(STConfig(), width=512, llm_width=768)
    assert sum(parameter.numel() for parameter in mapper.parameters()) == 31_468_800


def test_the_transformer_of_the_readme_has_the_size_of_the_reference() -> None:
    cfg = STConfig(kind="transformer", prefix_length=40, clip_length=40)
    with torch.device("meta"):
        mapper = build_st(cfg, width=512, llm_width=768)
    total = sum(parameter.numel() for parameter in mapper.parameters())
    assert round(total / 1e6, 1) == 53.6


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_shapes_in_both_precisions(kind: str) -> None:
    cfg = STConfig(kind=kind, prefix_length=3, clip_length=5, num_layers=2, num_heads=2, hidden=7)
    mapper = build_st(cfg, width=6, llm_width=8)
    assert mapper(torch.randn(4, 6)).shape == (4, 3, 8)
    assert mapper.bfloat16()(torch.randn(0, 6).bfloat16()).shape == (0, 3, 8)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match=r"st\.num_heads: 8 does not divide .* 20"):
        build_st(STConfig(kind="transformer"), width=6, llm_width=20)


@pytest.mark.parametrize("kind", ["mlp", "linear", "transformer"])
def test_a_silent_network_says_nothing_and_learns(kind: str) -> None:
    cfg = STConfig(kind=kind, prefix_length=2, clip_length=3, num_layers=2, num_heads=2, hidden=7)
    mapper = build_st(cfg, width=6, llm_width=8)
    mapper.load_state_dict(silent(mapper), strict=False)
    features, wanted = torch.randn(5, 6), torch.randn(5, 2, 8)
    assert not mapper(features).any()
    optimizer = torch.optim.Adam(mapper.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (mapper(features) - wanted).square().mean().backward()
        optimizer.step()
    assert (mapper(features) - wanted).square().mean() < 0.3 * wanted.square().mean()
