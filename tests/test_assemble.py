"""Splits and models put together: reading in order, and laying an export over a model."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.assemble import Split, overlay
from pipeline.config import DataConfig
from pipeline.data.manifest import Manifest, ShardEntry
from pipeline.data.plan import items_in_order
from pipeline.errors import CheckpointError
from pipeline.models.placement import Placement


def split(*sizes: int) -> Split:
    shards = tuple(ShardEntry(f"shard-{i:06d}.tar", 1, n, "") for i, n in enumerate(sizes))
    return Split(DataConfig(), (Manifest(Path("nowhere"), shards, {}),))


@pytest.mark.parametrize("limit", [None, 1, 4, 6, 99])
def test_in_order_reads_each_record_once_past_empty_shards(limit: int | None) -> None:
    items = items_in_order(split(4, 0, 3).in_order(2, limit))
    expected = [(0, 0), (0, 1), (0, 2), (0, 3), (2, 0), (2, 1), (2, 2)]
    assert items == expected[:limit]


def test_overlay_writes_the_part_and_leaves_the_rest() -> None:
    module = nn.Linear(2, 2)
    bias = module.bias.detach().clone()
    overlay(module, {"st.weight": torch.ones(2, 2), "llm.x": torch.ones(1)}, "st.", Placement())
    assert torch.equal(module.weight, torch.ones(2, 2)) and torch.equal(module.bias, bias)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [("st.wieght", (2, 2), "st.wieght"), ("st.weight", (3, 2), r"\(3, 2\), the model's is")],
)
def test_an_export_of_another_model_is_refused_before_anything_is_written(
    name: str, shape: tuple[int, ...], expected: str
) -> None:
    module = nn.Linear(2, 2)
    before = module.bias.detach().clone()
    with pytest.raises(CheckpointError, match=expected):
        overlay(module, {"st.bias": torch.ones(2), name: torch.ones(shape)}, "st.", Placement())
    assert torch.equal(module.bias, before)
