"""Checkpoints of LaVIN's reference: every tensor finds its place, or is listed."""

import argparse
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.lavin import parts
from pipeline.models.official_lavin import our_name, read_official_lavin
from tests.models import lavin_golden


def reference() -> dict[str, Tensor]:
    """What the reference saves after training on several GPUs."""
    weights = lavin_golden.behind("weight.", lavin_golden.read("lavin_image")[0])
    return {f"module.{name}": each for name, each in weights.items() if "adapter" in name}


def save(folder: Path, tensors: dict[str, Tensor]) -> Path:
    file = folder / "checkpoint-19.pth"
    torch.save({"model": tensors, "epoch": 19, "args": argparse.Namespace(lr=0.1)}, file)
    return file


def test_a_checkpoint_of_several_gpus_fills_every_trained_parameter(tmp_path: Path) -> None:
    model = lavin_golden.model()
    found = read_official_lavin(save(tmp_path, reference()), model)
    found.check()
    parameters = dict(model.named_parameters())
    own = [
        p
        for name in ("encoder_adapters", "st", "adapters")
        for p in parts(model)[name].parameters()
    ]
    assert len(found.tensors) == len(own) == 5 + 11 * 8
    for name, tensor in found.tensors.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, parameters[name])  # the golden test set them


def test_what_is_unknown_and_what_is_missing_is_listed(tmp_path: Path) -> None:
    model, tensors = lavin_golden.model(), reference()
    del tensors["module.layers.1.adapter_attn.conv_D.weight"]
    del tensors["module.adapter_modality_embedding.weight"]
    tensors["module.layers.9.adapter_attn.conv_A.bias"] = torch.zeros(4)
    tensors["module.layers.0.adapter_mlp.conv_A.bias"] = torch.zeros(4)
    found = read_official_lavin(save(tmp_path, tensors), model)
    assert found.missing == ("adapters.layers.1.up.1.weight", "adapters.modality.weight")
    assert len(found.unknown) == 2
    with pytest.raises(CheckpointError) as error:
        found.check()
    for name in (*found.missing, "layers.0.adapter_mlp.conv_A.bias", "layers.9"):
        assert name in str(error.value)


def test_a_tensor_of_another_size_is_refused_with_both_shapes(tmp_path: Path) -> None:
    tensors = reference() | {"module.adapter_proj.conv_A.bias": torch.zeros(17)}
    with pytest.raises(CheckpointError, match=r"st\.up\.bias is \(17,\), the model's is \(16,\)"):
        read_official_lavin(save(tmp_path, tensors), lavin_golden.model())


@pytest.mark.parametrize(
    "name", ["layers.0.attention.wq.weight", "adapter_proj.conv_C.weight", "x"]
)
def test_names_of_other_tensors_are_unknown(name: str) -> None:
    assert our_name(name) is None


class Evil:
    def __reduce__(self):
        return (os.system, ("true",))


def test_a_file_that_runs_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "evil.pth"
    torch.save({"model": Evil()}, file)
    with pytest.raises(CheckpointError, match="cannot be read without running code"):
        read_official_lavin(file, lavin_golden.model())
    with pytest.raises(ConfigError, match="there is no such file"):
        read_official_lavin(tmp_path / "none.pth", lavin_golden.model())
    torch.save([1], file)
    with pytest.raises(CheckpointError, match="it is no state dict"):
        read_official_lavin(file, lavin_golden.model())
