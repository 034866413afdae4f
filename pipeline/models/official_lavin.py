"""Reads the checkpoints of LaVIN's reference implementation into our names.

A file holds what trains there, every tensor whose name has "adapter" in it: the adapters of the
language model and of the image tower, the visual projection, the modality embedding. The
reference's own --resume loads nothing from files of several GPUs, whose names all begin with
`module.`, and says nothing. Here what is unknown or missing is listed. In a batch the reference
routes all images by the first; `lavin.routing=token` is what its single images get.
SOURCE: LaVIN lavin/mm_adapter.py, lavin/model.py, util/misc.py:291-330.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pipeline.config import Config
from pipeline.errors import CheckpointError
from pipeline.models.lavin import parts
from pipeline.models.lavin_model import Lavin
from pipeline.models.official_files import read_state_dict

_TOWER = re.compile(r"backbone\.visual\.transformer\.resblocks\.(\d+)\.adapter_attn\.(.+)")
_LAYER = re.compile(r"layers\.(\d+)\.adapter_attn\.(.+)")
_WHOLE = {
    "adapter_modality_embedding.weight": "adapters.modality.weight",
    "adapter_proj.conv_A": "st.up",
    "adapter_proj.conv_B": "st.down",
}
_ADAPTER = {"conv_A": "down", "conv_B": "up.0", "conv_D": "up.1", "expert_weights": "router"}
_PARTS = ("encoder_adapters", "st", "adapters")  # what a file must hold of a model


@dataclass(frozen=True)
class OfficialLavin:
    """A checkpoint under the names that our exports have, and what is not as it should be."""

    tensors: Mapping[str, Tensor]  # float32
    unknown: tuple[str, ...]  # the file's own names of tensors that this model has no place for
    missing: tuple[str, ...]  # our names of parameters that the file has no tensor for

    def check(self) -> None:
        """Raises CheckpointError, with all names, unless the file and the model agree."""
        faults = []
        if self.unknown:
            faults.append(f"it holds what this model has not: {', '.join(self.unknown)}")
        if self.missing:
            faults.append(f"it lacks {', '.join(self.missing)}")
        if faults:
            raise CheckpointError(
                f"the LaVIN checkpoint does not fit this model: {'; '.join(faults)}; use the LLM "
                "and the tower that it was trained with"
            )


def our_name(reference: str) -> str | None:
    """The exported name of a tensor of the reference; None for one that is not LaVIN's own."""
    for pattern, place in ((_TOWER, "encoder.adapters"), (_LAYER, "adapters.layers")):
        if match := pattern.fullmatch(reference):
            inner, _, kind = match[2].rpartition(".")
            return f"{place}.{match[1]}.{_ADAPTER[inner]}.{kind}" if inner in _ADAPTER else None
    if reference in _WHOLE:
        return _WHOLE[reference]
    stem, _, kind = reference.rpartition(".")
    return f"{_WHOLE[stem]}.{kind}" if stem in _WHOLE else None


def rename(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """(tensors under our names in float32, the names of those that are not LaVIN's own)."""
    found: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        ours = our_name(name)
        if ours is None or ours in found:
            unknown.append(name)
            continue
        # Convolutions of one point: (out, in, 1).
        found[ours] = (tensor.squeeze(-1) if tensor.dim() == 3 else tensor).float()
    return found, tuple(sorted(unknown))


def read_official_lavin(file: Path, model: Lavin) -> OfficialLavin:
    """A checkpoint of the reference, compared with a model; nothing is written into the model.

    Args:
        file: `checkpoint-N.pth` of its train.py, or its state dict alone.
        model: may be on the meta device. Of one without a tower, the tower's adapters are unknown.

    Raises:
        ConfigError: there is no such file.
        CheckpointError: it is damaged, unsafe to read, or a tensor has another shape.
    """
    tensors, unknown = rename(read_state_dict(file))
    wanted = dict(_parameters(model))
    for name in tensors.keys() & wanted.keys():
        theirs, ours = tuple(tensors[name].shape), _shape(wanted[name])
        if theirs != ours:
            raise CheckpointError(
                f"official={file}: {name} is {theirs}, the model's is {ours}; set llm.path, "
                "encoder.arch and lavin.* to what the checkpoint was trained with"
            )
    elsewhere = sorted(tensors.keys() - wanted.keys())
    return OfficialLavin(
        tensors={name: tensors[name] for name in tensors if name in wanted},
        unknown=(*unknown, *elsewhere),
        missing=tuple(sorted(wanted.keys() - tensors.keys())),
    )


def otherwise(config: Config) -> list[str]:
    """A line on what a recipe does otherwise than the reference, which no tensor tells; or none."""
    theirs = {
        "encoder.pixels": ("imagenet", config.encoder.pixels),
        "encoder.resize": ("squash", config.encoder.resize),
        "lavin.routing": ("token", config.lavin.routing),
    }
    wanted = [f"{key}={value}" for key, (value, ours) in theirs.items() if value != ours]
    if not wanted:
        return []
    return [f"the reference fed it single images by {' '.join(wanted)}, this recipe does not"]


def _parameters(model: Lavin) -> dict[str, Tensor]:
    """The parameters that LaVIN adds to its base models, by exported name."""
    own = {id(each) for name in _PARTS for each in _of(model, name)}
    return {name: each for name, each in model.named_parameters() if id(each) in own}


def _of(model: Lavin, part: str) -> list[Tensor]:
    found = parts(model).get(part)
    return [] if found is None else list(found.parameters())


def _shape(parameter: Tensor) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))  # also where ZeRO-3 keeps a part
