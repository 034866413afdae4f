"""Reads a language model's weights tensor by tensor: one safetensors file, shards, or .bin files.

Names in the files may lack, or have, the prefix of the model's base (`transformer.`, `model.`).
Assumes that a file's other names are the model's; `llm.py` handles those that are not. Nothing is
unpickled: .bin files are read with weights_only.
"""

import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from pipeline.errors import CheckpointError, ConfigError

Locate = Callable[[str], Path | None]

# What torch.load and safetensors raise for a damaged file, or for one that holds no weights at all:
# a page saved in their place gives a KeyError.
UNREADABLE = (
    *(SafetensorError, UnpicklingError, RuntimeError, OSError, EOFError),
    *(ValueError, LookupError, struct.error),
)


def why_unreadable(error: Exception) -> str:
    """The first sentence of one of `UNREADABLE`, without torch's advice and its colours."""
    said = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split()).partition(". ")[0][:120]
    return said if " " in said else "no file of weights"


class TensorFiles:
    """The tensors of one set of weight files, read one at a time.

    Args:
        files: safetensors or .bin files.
        prefix: of the model's base, without the dot; may be empty.

    Raises:
        CheckpointError: a file is damaged, or cannot be read without running code from it.
    """

    def __init__(self, files: Iterable[Path], prefix: str) -> None:
        self._prefix = f"{prefix}." if prefix else ""
        self._where: dict[str, Path] = {}
        self._bins: dict[Path, Mapping[str, Tensor]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}  # by the names in the files
        for file in files:
            shapes = self._shapes(file)
            self.shapes.update(shapes)
            self._where.update(dict.fromkeys(shapes, file))

    def __call__(self, name: str) -> Tensor | None:
        """The tensor of the model's `name`, or None where the files have none."""
        source = self.source(name)
        if source is None:
            return None
        file = self._where[source]
        if file in self._bins:
            return self._bins[file][source]
        with safe_open(file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(source)
        return tensor

    def source(self, name: str) -> str | None:
        """The name in the files of the model's `name`, with or without the base's prefix."""
        for candidate in (name, name.removeprefix(self._prefix), self._prefix + name):
            if candidate in self._where:
                return candidate
        return None

    def _shapes(self, file: Path) -> dict[str, tuple[int, ...]]:
        try:
            if file.suffix != ".safetensors":
                loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
                if not isinstance(loaded, Mapping):
                    raise UnpicklingError("it holds no state dict")
                self._bins[file] = loaded
                return {name: tuple(each.shape) for name, each in self._bins[file].items()}
            with safe_open(file, framework="pt") as opened:
                names = opened.keys()
                return {name: tuple(opened.get_slice(name).get_shape()) for name in names}
        except UNREADABLE as error:
            raise CheckpointError(
                f"llm.path: {file} cannot be read safely ({why_unreadable(error)}); "
                "fetch it again, or save the model as safetensors"
            ) from error


def weight_files(path: str, locate: Locate) -> list[Path]:
    """The files that hold the weights of the model at `path`.

    Args:
        path: as the user wrote it, for the message.
        locate: file name -> its local path, fetched where it must be; None where there is none.

    Raises:
        ConfigError: there are no weights, or a shard is missing.
    """
    for whole, index in (
        (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME),
        (WEIGHTS_NAME, WEIGHTS_INDEX_NAME),
    ):
        if (file := locate(whole)) is not None:
            return [file]
        if (file := locate(index)) is not None:
            names = sorted(set(json.loads(file.read_text())["weight_map"].values()))
            return [_shard(path, name, locate) for name in names]
    raise ConfigError(
        f"llm.path: {path} has neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME} nor their shards; "
        "name a folder with the weights of a causal language model"
    )


def _shard(path: str, name: str, locate: Locate) -> Path:
    if Path(name).name != name:
        raise ConfigError(
            f"llm.path: {path}: its index names {name!r}, which is no file of that folder; fetch "
            "the model again"
        )
    file = locate(name)
    if file is None:
        raise ConfigError(f"llm.path: {path}: the shard {name} is missing; fetch the model again")
    return file
