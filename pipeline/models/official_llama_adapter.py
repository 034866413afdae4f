"""LLaMA-Adapter V1's published adapter checkpoints, under the names of our exports.

A file holds `adapter_query.weight` (the prompts of all adapted layers, lowest layer first) and
`layers.N.attention.gate`; the files that the training script writes have these inside `model`,
beside the frozen LLaMA. Read with weights_only. It assumes the recipe's sizes; nothing is built.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.official_files import read_state_dict
from pipeline.models.official_meta import rename

_PROMPTS = "adapter_query.weight"
_GATE = re.compile(r"layers\.(\d+)\.attention\.gate")


@dataclass(frozen=True)
class AdapterCheckpoint:
    """What a file holds for a recipe, and what else is in it."""

    tensors: dict[str, Tensor]  # by exported name (adaption.*), float32
    unused: tuple[str, ...]  # gates of layers without prompts; the reference writes them all
    frozen: tuple[str, ...]  # of the base LLaMA, which comes from llm.path

    def remarks(self) -> list[str]:
        """A line for each kind of tensor that was left where it is; for the log."""
        kinds = (
            (self.unused, "gates of layers that have no prompts"),
            (self.frozen, "weights of the frozen LLaMA, which come from llm.path"),
        )
        return [f"not taken: {len(each)} {what}: {_some(each)}" for each, what in kinds if each]


def read_adapter(file: Path, *, depth: int, layers: int, length: int) -> AdapterCheckpoint:
    """An official checkpoint for a model of these sizes.

    Args:
        file: a .pth of the reference.
        depth: layers of the language model.
        layers: `llama_adapter.layers`, of which the topmost have prompts.
        length: `llama_adapter.prompt_length`.

    Returns:
        All tensors of `AdaptionPrompts`, and the names of what was not taken.

    Raises:
        ConfigError: there is no such file, or the model has fewer layers.
        CheckpointError: it cannot be read safely, lacks tensors or holds unknown ones (all are
            named), is of another size, or not finite.
    """
    if layers > depth:
        raise ConfigError(
            f"llama_adapter.layers={layers}: the language model has {depth}; set it to what the "
            "checkpoint was trained with, and llm.path to its LLaMA"
        )
    found = read_state_dict(file)
    gates = {f"layers.{depth - layers + i}.attention.gate": i for i in range(layers)}
    missing = [name for name in (_PROMPTS, *gates) if name not in found]
    if missing:
        raise CheckpointError(
            f"{file} lacks {', '.join(missing)}; it is no checkpoint of LLaMA-Adapter V1, or one "
            f"for more layers than it has (llama_adapter.layers={layers})"
        )
    rows = len(found[_PROMPTS]) if found[_PROMPTS].dim() == 2 else 0
    if rows != layers * length:
        raise CheckpointError(
            f"{file}: {rows} prompts are not {length} in each of {layers} layers; set "
            "llama_adapter.prompt_length and llama_adapter.layers to the checkpoint's"
        )
    prompts = found[_PROMPTS].float().chunk(layers)
    tensors = {f"adaption.late.{i}.prompt": each.clone() for i, each in enumerate(prompts)}
    for name, i in gates.items():
        tensors[f"adaption.late.{i}.gate"] = found[name].float().flatten()
    left = sorted(found.keys() - gates.keys() - {_PROMPTS})
    frozen = tuple(each for each in left if rename(each) is not None)
    unused = tuple(each for each in left if _GATE.fullmatch(each))
    unknown = [each for each in left if each not in frozen and each not in unused]
    if unknown:
        raise CheckpointError(
            f"{file} holds what LLaMA-Adapter V1 has not: {', '.join(unknown)}; it is of another "
            "version, which is not read here"
        )
    broken = [name for name, each in tensors.items() if not bool(each.isfinite().all())]
    if broken:
        raise CheckpointError(f"{file}: {broken[0]} is not finite; get the file again")
    return AdapterCheckpoint(tensors, unused, frozen)


def check_sizes(file: Path, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Compares a file's tensors with a model, which may be on the meta device.

    Raises:
        CheckpointError: the first tensor that the model has in another shape.
    """
    for name, each in tensors.items():
        theirs, ours = tuple(each.shape), tuple(model.get_parameter(name).shape)
        if theirs != ours:
            raise CheckpointError(
                f"official={file}: {name} is {theirs}, the model's is {ours}; set llm.path to the "
                "LLaMA that it was trained with"
            )


def _some(names: tuple[str, ...]) -> str:
    """All names, or where the frozen LLaMA's hundreds are among them, the first and the last."""
    return ", ".join(names) if len(names) <= 40 else f"{names[0]} ... {names[-1]}"
