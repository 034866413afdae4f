"""LLaMA-Adapter V1's published checkpoints: taken over whole, and everything else is named."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.adaption import AdaptionPrompts
from pipeline.models.decoder import decoder
from pipeline.models.official_llama_adapter import read_adapter
from tests.models import tiny

DEPTH, LAYERS, LENGTH, HEADS = 2, 1, 3, 2


def published() -> dict[str, Tensor]:
    """As the reference writes it: half precision, a gate for every layer."""
    torch.manual_seed(0)
    gates = {f"layers.{i}.attention.gate": torch.randn(1, HEADS, 1, 1) for i in range(DEPTH)}
    tensors = {"adapter_query.weight": torch.randn(LAYERS * LENGTH, tiny.WIDTH), **gates}
    return {name: each.half() for name, each in tensors.items()}


def read(file: Path, **changes: int) -> Any:
    return read_adapter(file, **{"depth": DEPTH, "layers": LAYERS, "length": LENGTH, **changes})


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_checkpoint_fills_all_prompts_and_names_the_rest(
    tmp_path: Path, wrapped: bool, prefix: str
) -> None:
    tensors = published()
    more = {"layers.0.attention.wq.weight": torch.ones(2)}
    saved: Any = {prefix + name: each for name, each in {**tensors, **more}.items()}
    whole = {"model": saved, "epoch": 4, "args": Namespace(blr=9e-3)}
    torch.save(whole if wrapped else saved, tmp_path / "adapter.pth")
    found = read(tmp_path / "adapter.pth")

    prompts = AdaptionPrompts(decoder(tiny.llama()), layers=LAYERS, length=LENGTH)
    named = {name.removeprefix("adaption."): each for name, each in found.tensors.items()}
    prompts.load_state_dict(named)
    assert torch.equal(prompts.late[0].prompt, tensors["adapter_query.weight"].float())
    assert torch.equal(prompts.late[0].gate, tensors["layers.1.attention.gate"].float().flatten())
    assert found.unused == ("layers.0.attention.gate",)
    assert found.frozen == ("layers.0.attention.wq.weight",)
    said = " ".join(found.remarks())
    assert all(name in said for name in (*found.unused, *found.frozen))


def test_more_layers_than_the_model_has_are_refused_by_their_key(tmp_path: Path) -> None:
    torch.save(published(), tmp_path / "adapter.pth")
    with pytest.raises(ConfigError, match=r"llama_adapter.layers=3: the language model has 2;"):
        read(tmp_path / "adapter.pth", layers=3)


def test_prompts_go_to_the_layers_from_below_upwards(tmp_path: Path) -> None:
    torch.save(
        {**published(), "adapter_query.weight": torch.arange(6.0)[:, None].expand(6, 16)},
        tmp_path / "adapter.pth",
    )
    found = read(tmp_path / "adapter.pth", layers=2).tensors
    assert found["adaption.late.0.prompt"][:, 0].tolist() == [0, 1, 2]
    assert found["adaption.late.1.prompt"][:, 0].tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("saved", "changes", "message"),
    [
        ({"epoch": torch.ones(1)}, {}, r"lacks adapter_query.weight, layers.1.attention.gate;"),
        (published(), {"length": 2}, "3 prompts are not 2 in each of 1 layers"),
        (published() | {"adapter_query.weight": torch.ones(())}, {}, "0 prompts are not 3 in each"),
        (published(), {"depth": 3}, "lacks layers.2.attention.gate;"),
        (
            published() | {f"visual_blocks.{i}": torch.ones(1) for i in (0, 1)},
            {},
            "has not: visual_blocks.0, visual_blocks.1;",
        ),
        (
            published() | {"adapter_query.weight": torch.full((3, tiny.WIDTH), torch.nan)},
            {},
            "adaption.late.0.prompt is not finite",
        ),
        ([1], {}, "it is no state dict"),
        ({"model": {"x": 1}}, {}, "it is no state dict"),
        ({"args": Path("x")}, {}, "without running code"),
    ],
)
def test_another_file_is_refused_in_one_line(
    tmp_path: Path, saved: Any, changes: dict[str, int], message: str
) -> None:
    torch.save(saved, tmp_path / "adapter.pth")
    with pytest.raises(CheckpointError, match=message) as raised:
        read(tmp_path / "adapter.pth", **changes)
    assert "\n" not in str(raised.value)
