"""Opens the checkpoints of the references: a state dict, alone or beside a training run's state.

Nothing in a file is run. What its tensors mean, the reader of each family knows (`official.py`,
`official_lavin.py`, `official_llama_adapter.py`).
"""

import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.weights import UNREADABLE, why_unreadable

_WRAPPER = "module."  # of DistributedDataParallel


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, mapped into memory rather than read where the format allows it.

    Args:
        file: *.safetensors, or what torch.save wrote: a state dict, or a mapping that has it as
            `model`, as the training scripts of LaVIN and LLaMA-Adapter write it.

    Returns:
        Name -> tensor, without the `module.` that training on several GPUs puts before every name.

    Raises:
        ConfigError: there is no such file.
        CheckpointError: it is damaged, unsafe to read, or holds no named tensors.
    """
    if not file.is_file():
        raise ConfigError(f"official={file}: there is no such file; name a checkpoint")
    loaded = _load(file)
    if isinstance(loaded, Mapping):
        loaded = loaded.get("model", loaded)
    tensors = isinstance(loaded, Mapping) and all(isinstance(v, Tensor) for v in loaded.values())
    if not isinstance(loaded, Mapping) or not loaded or not tensors:
        raise CheckpointError(
            f"official={file}: it is no state dict, so no checkpoint of a reference; name one"
        )
    names = {each: str(each) for each in loaded}
    if all(name.startswith(_WRAPPER) for name in names.values()):
        names = {each: name.removeprefix(_WRAPPER) for each, name in names.items()}
    return {name: loaded[each] for each, name in names.items()}


def _load(file: Path) -> object:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # The training scripts save their arguments too: plain values in a Namespace.
        with torch.serialization.safe_globals([Namespace]):
            mapped = zipfile.is_zipfile(file)  # older files cannot be
            return torch.load(file, map_location="cpu", mmap=mapped, weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(
            f"official={file} cannot be read without running code from it, or is damaged "
            f"({why_unreadable(error)}); fetch it again, or save its tensors as safetensors"
        ) from error
