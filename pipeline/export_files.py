"""What an export holds, written and read: tensors beside a JSON that says which recipe made them.

Tensors are one safetensors file with everything that differs from the base weights. Where exports
lie and which one a user means stands in `exports.py`. Knows no phase, no model, no ranks.
"""

import contextlib
import errno
import hashlib
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

    Where one is there already, a reader may find none for an instant. Of attempts that write at the
    same time one leaves a whole export; the other may raise OSError.

    tensors: by exported name. details: the recipe's fingerprint and what the next reader wants.
    config: the recipe that made it, kept beside the tensors. guard: called before the folder
    appears, to raise where it must not. Size and hash of the weights are noted for `check_weights`.
    """
    for left in folder.parent.glob(f".writing-{folder.name}-*"):  # by a killed run
        shutil.rmtree(left, ignore_errors=True)
    # A name of its own: an older attempt, cut off, may still be writing.
    writing = folder.with_name(f".writing-{folder.name}-{socket.gethostname()}-{os.getpid()}")
    writing.mkdir(parents=True)
    save_file({name: each.contiguous() for name, each in tensors.items()}, writing / WEIGHTS)
    save_recipe(config, writing / RECIPE)
    written = {**details, "progress": asdict(progress), "weights": _measure(writing / WEIGHTS)}
    write_json(writing / DETAILS, written)
    for path in (*writing.iterdir(), writing):
        sync(path)
    guard()
    _replace(folder, writing)
    sync(folder.parent)


def _replace(folder: Path, writing: Path) -> None:
    """Gives `writing` the name `folder`; what had it is removed only when a whole one has it.

    Another attempt may do the same at any time, or have removed `writing` as a killed run's.
    """
    aside = writing.with_name(f"{writing.name}-aside")  # so that a next attempt removes it, too
    placed = False
    while not placed:
        with contextlib.suppress(FileNotFoundError):
            folder.rename(aside)
        try:
            placed = _moved(writing, folder)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                _moved(aside, folder)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _moved(source: Path, target: Path) -> bool:
    """Renames a folder; False where another has the name."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        raise
    return True


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


def check_weights(folder: Path) -> None:
    """Raises CheckpointError where an export's weights are not what was written.

    One that does not tell their size and hash, of an older version, passes.
    """
    expected, path = (read_export(folder) or {}).get("weights"), folder / WEIGHTS
    if expected is None:
        return
    try:
        found = _measure(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); check the disk") from error
    if found != expected:
        raise CheckpointError(
            f"{path} is not what was written ({_said(found)}, not {_said(expected)}); bring back a "
            f"good copy, or delete {folder.parent} and run the phase that makes it again"
        )


def _measure(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _said(measured: Mapping[str, Any]) -> str:
    return f"{measured['bytes']:,} bytes with the SHA-256 {measured['sha256'][:12]}..."


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
