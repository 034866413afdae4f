"""The references' files: opened without running anything, whatever lies around the tensors."""

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.official_files import read_state_dict

TENSORS = {"a.weight": torch.ones(2), "b": torch.zeros(3)}


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("true",))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_tensors_are_found_in_every_form_that_the_references_write(
    tmp_path: Path, prefix: str, wrapped: bool, zipped: bool
) -> None:
    saved: Any = {prefix + name: each for name, each in TENSORS.items()}
    if wrapped:
        saved = {"model": saved, "epoch": 4, "args": argparse.Namespace(lr=0.1)}
    torch.save(saved, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = read_state_dict(tmp_path / "x.pth")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in found)


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert read_state_dict(tmp_path / "x.safetensors").keys() == TENSORS.keys()


def test_a_name_is_shortened_only_where_all_are(tmp_path: Path) -> None:
    torch.save({"module.x": torch.ones(1), "x": torch.zeros(1)}, tmp_path / "x.pth")
    assert read_state_dict(tmp_path / "x.pth").keys() == {"module.x", "x"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": Evil()}, "cannot be read without running code"),
        ([1], "it is no state dict"),
        ({}, "it is no state dict"),
        ({"model": {"x": 1}}, "it is no state dict"),
        (b"<html>not found</html>", "is damaged"),
        (b"", "is damaged"),
        (b"epoch: 3\n", "is damaged"),
    ],
)
def test_other_files_are_refused_in_one_line_without_advice_to_trust_them(
    tmp_path: Path, content: Any, message: str
) -> None:
    file = tmp_path / "x.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_state_dict(file)
    assert "\n" not in str(raised.value) and "PyTorch 2.6" not in str(raised.value)


@pytest.mark.parametrize("name", ["none.pth", ""])
def test_a_file_that_is_not_there_is_said_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        read_state_dict(tmp_path / name)
