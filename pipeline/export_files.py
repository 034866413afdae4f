"""What an export holds, written and read: tensors beside a JSON that says which recipe made them.

Tensors are one safetensors file with everything that differs from the base weights. Where exports
lie and which one a user means stands in `exports.py`. Knows no phase, no model, no ranks.
"""

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.config import Config
from pipeline.durable import sync, write_json
from pipeline.errors import CheckpointError
from pipeline.exports import DETAILS, RECIPE, WEIGHTS, is_export
from pipeline.progress import Progress
from pipeline.recipe import save_recipe

IMPORTED = "imported"  # the `phase` of an export that no phase of ours has made


def save_export(
    folder: Path,
    tensors: Mapping[str, Tensor],
    progress: Progress,
    details: Mapping[str, Any],
    config: Config,
    *,
    guard: Callable[[], None] = lambda: None,
) -> None:
    """Writes an export folder by rename; call on one rank only.

    tensors: by exported name. details: the recipe's fingerprint and what the next reader wants.
    config: the recipe that made it, kept beside the tensors. guard: called before the folder
    appears, to raise where it must not.
    """
    for left in folder.parent.glob(f".writing-{folder.name}-*"):  # by a killed run
        shutil.rmtree(left, ignore_errors=True)
    # A name of its own: an older attempt, cut off, may still be writing.
    writing = folder.with_name(f".writing-{folder.name}-{socket.gethostname()}-{os.getpid()}")
    writing.mkdir(parents=True)
    save_file({name: each.contiguous() for name, each in tensors.items()}, writing / WEIGHTS)
    save_recipe(config, writing / RECIPE)
    write_json(writing / DETAILS, {**details, "progress": asdict(progress)})
    for path in writing.iterdir():
        sync(path)
    guard()
    if folder.exists():
        shutil.rmtree(folder)
    writing.rename(folder)
    sync(folder.parent)


def read_export(folder: Path) -> dict[str, Any] | None:
    """The export's JSON; None when there is no complete export at `folder`."""
    path = folder / DETAILS
    if not is_export(folder):
        return None
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); delete the folder, the phase makes it again"
        ) from error
    return loaded


def check_has_st(folder: Path) -> None:
    """Raises CheckpointError for an export that no image tells anything: it holds no trained ST."""
    tensors = ExportTensors(folder)
    if any(name.startswith("st.") for name in tensors):
        return
    text_model = any(name.startswith("adaption.") for name in tensors)
    remedy = ", or answer questions without their images: llama_adapter.sees_images=false"
    raise CheckpointError(
        f"{folder} holds no ST network, so images would tell it nothing; name an export of "
        f"st_align or llm_tune{remedy if text_model else ''}"
    )


class ExportTensors(Mapping[str, Tensor]):
    """The tensors of an export by exported name, each read from the file when it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError when the file is missing or damaged."""
        self._path = folder / WEIGHTS
        try:
            opened: Any = safe_open(self._path, framework="pt")
            self._file, self._names = opened, tuple(opened.keys())
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"export {self._path} cannot be read ({error}); run the phase that makes it again"
            ) from error

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._file.get_slice(name).get_shape())
