"""Reads the checkpoints of the reference implementation of ClipCap.

A file holds the state dict that its train.py saves: the mapper (`clip_project.*`) and, in both
variants, all of GPT-2 (`gpt.*`); files with the mapper alone are read too. What a recipe must say
follows from names and shapes. Not in any file, so not known here: whether the image features were
normalised (--normalize_prefix, here encoder.normalize), and which tower of that width it was.
SOURCE: CLIP_prefix_caption train.py:80-258, predict.py:140-151.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor
from transformers import GPT2Config

from pipeline.config import Config, STConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.encoder_sketch import feature_width
from pipeline.models.llm import load_llm_config
from pipeline.models.official_files import read_state_dict
from pipeline.models.st import build_st

STOP = "."  # no EOS is ever learnt: a caption ends here; SOURCE: predict.py:172-176

_MAPPER, _LLM = "clip_project.", "gpt."
_EMBEDDINGS, _POSITIONS = "transformer.wte.weight", "transformer.wpe.weight"
_GPT2_WIDTH = 768  # the reference knows no other GPT-2; SOURCE: train.py:240
_NUM_HEADS = 8  # no shape shows it; SOURCE: train.py:211
_TOWERS = MappingProxyType({512: "ViT-B-32", 640: "RN50x4"})  # SOURCE: train.py:355

# The reference's names (behind `clip_project.`) -> ours.
_NAMES = MappingProxyType(
    {
        "model.0": "up",
        "model.2": "down",
        "linear": "unfold",
        "transformer.layers": "layers",
        "norm1": "norm_attn",
        "norm2": "norm_mlp",
        "attn.to_queries": "query",
        "attn.to_keys_values": "key_value",
        "attn.project": "attn_out",
        "mlp.fc1": "mlp_up",
        "mlp.fc2": "mlp_down",
    }
)
# Keys of `st` that a mapper of each kind has.
_KEYS = MappingProxyType(
    {
        "mlp": ("kind", "prefix_length", "hidden"),
        "linear": ("kind", "prefix_length"),
        "transformer": ("kind", "prefix_length", "clip_length", "num_layers", "num_heads"),
    }
)


@dataclass(frozen=True)
class Official:
    """A checkpoint of the reference under our names."""

    st: STConfig
    feature_width: int  # C
    llm: Mapping[str, int]  # sizes as GPT2Config calls them; of a mapper alone, n_embd (D)
    tensors: Mapping[str, Tensor]  # by exported name: st.*, llm.*; float32

    def __str__(self) -> str:
        """What it is, in words."""
        llm = ", ".join(f"{key} {value}" for key, value in self.llm.items())
        return (
            f"{self.st.kind} mapper, prefix_length {self.st.prefix_length}, features of width "
            f"{self.feature_width}, GPT-2 with {llm}"
        )


def read_official(file: Path) -> Official:
    """Reads a checkpoint; no code in it is run.

    Args:
        file: `*.pt` (torch.save of a state dict) or `*.safetensors`.

    Raises:
        ConfigError: there is no such file.
        CheckpointError: it is damaged, unsafe to read, or no checkpoint of the reference.
    """
    tensors = read_state_dict(file)
    if not any(name.startswith(_MAPPER) for name in tensors):
        raise _no_reference(file, f"no tensor is named {_MAPPER}*")
    mapper = {n.removeprefix(_MAPPER): t for n, t in tensors.items() if n.startswith(_MAPPER)}
    llm = {n.removeprefix(_LLM): t for n, t in tensors.items() if n.startswith(_LLM)}
    if other := sorted(name for name in tensors if not name.startswith((_MAPPER, _LLM))):
        raise _no_reference(file, f"it holds {other[0]}")
    if flat := [name for name, tensor in mapper.items() if not tensor.dim() or not tensor.numel()]:
        raise _no_reference(file, f"{_MAPPER}{flat[0]} has no size")
    sizes = _llm_sizes(file, mapper, llm)
    width = sizes["n_embd"]
    st, features = _mapper_config(file, mapper, width)
    named = {f"st.{mapper_name(name)}": tensor.float() for name, tensor in mapper.items()}
    _check_mapper(file, st, features, width, named)
    named |= {f"llm.{name}": tensor.float() for name, tensor in _parameters(file, llm).items()}
    return Official(st, features, sizes, MappingProxyType(named))


def mapper_name(reference: str) -> str:
    """Our name, within the ST network, of a reference's name behind `clip_project.`."""
    if reference in ("weight", "bias"):
        return f"project.{reference}"
    for theirs, ours in _NAMES.items():
        reference = reference.replace(theirs, ours)
    return reference


def check_recipe(official: Official, cfg: Config) -> None:
    """Compares a checkpoint with a recipe; opens configurations, no weights.

    Raises:
        ConfigError: they differ; one line with all keys to set.
    """
    wanted = []
    for key in _KEYS[official.st.kind]:
        ours, theirs = _value(cfg.st, key, official), _value(official.st, key, official)
        if ours != theirs:
            wanted.append(f"st.{key}={theirs}")
    if feature_width(cfg.encoder) != official.feature_width:
        other = f"ARCH (one with features of width {official.feature_width})"
        wanted.append(f"encoder.arch={_TOWERS.get(official.feature_width, other)}")
    llm = load_llm_config(cfg.llm)
    if not isinstance(llm, GPT2Config) or any(
        getattr(llm, key) != value for key, value in official.llm.items()
    ):
        sizes = ", ".join(f"{key} {value}" for key, value in official.llm.items())
        wanted.append(f"llm.path=FOLDER (a GPT-2 with {sizes})")
    if wanted:
        raise ConfigError(
            f"the official checkpoint ({official}) does not fit this recipe; set {' '.join(wanted)}"
        )


def _llm_sizes(
    file: Path, mapper: Mapping[str, Tensor], llm: Mapping[str, Tensor]
) -> dict[str, int]:
    """What shows of GPT-2's sizes; D always."""
    if not llm:
        prefix = mapper.get("prefix_const")
        return {"n_embd": _GPT2_WIDTH if prefix is None else int(prefix.shape[-1])}
    for name in (_EMBEDDINGS, _POSITIONS):
        if name not in llm or llm[name].dim() != 2:
            raise _no_reference(file, f"{_LLM}{name} is missing, or no matrix")
    layers = [re.match(r"transformer\.h\.(\d+)\.", name) for name in llm]
    vocab_size, n_embd = llm[_EMBEDDINGS].shape
    return {
        "n_embd": int(n_embd),
        "n_layer": len({match[1] for match in layers if match}),
        "vocab_size": int(vocab_size),
        "n_positions": len(llm[_POSITIONS]),
    }


def _mapper_config(file: Path, mapper: Mapping[str, Tensor], width: int) -> tuple[STConfig, int]:
    """The `st` of a recipe that has this mapper, and C."""
    if {"linear.weight", "prefix_const"} <= mapper.keys():
        first, last = "linear.weight", "linear.weight"
        layers = {n.split(".")[2] for n in mapper if n.startswith("transformer.layers.")}
        st = STConfig(kind="transformer", num_layers=len(layers), num_heads=_NUM_HEADS)
        st.prefix_length = len(mapper["prefix_const"])
    elif {"model.0.weight", "model.2.weight"} <= mapper.keys():
        first, last = "model.0.weight", "model.2.weight"
        st = STConfig(kind="mlp", hidden=len(mapper[first]))
    elif "weight" in mapper:
        first, last = "weight", "weight"
        st = STConfig(kind="linear")
    else:
        raise _no_reference(file, f"{_MAPPER}* is neither an MLP, a transformer nor a linear layer")
    tokens = len(mapper[last]) // width  # of width D; what is left over, _check_mapper finds
    if st.kind == "transformer":
        st.clip_length = tokens
    else:
        st.prefix_length = tokens
    return st, int(mapper[first].shape[-1])


def _check_mapper(
    file: Path, st: STConfig, features: int, width: int, named: Mapping[str, Tensor]
) -> None:
    """Every parameter of the mapper is there, and nothing else."""
    with torch.device("meta"):
        built = build_st(st, width=features, llm_width=width)
    expected = {f"st.{name}": each.shape for name, each in built.named_parameters()}
    found = {name: each.shape for name, each in named.items()}
    if expected != found:
        name = min(dict(expected.items() ^ found.items()))
        raise _no_reference(file, f"its {st.kind} mapper differs from the reference's in {name}")


def _parameters(file: Path, llm: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2's parameters, each once.

    Old versions of transformers stored the causal mask as buffers, and a state dict has the head
    beside the embeddings that it is tied to.
    """
    head = llm.get("lm_head.weight")
    if head is not None and not torch.equal(head, llm[_EMBEDDINGS]):
        raise _no_reference(file, "its output head is not tied to the embeddings")
    masks = (".attn.bias", ".attn.masked_bias")
    return {n: t for n, t in llm.items() if n != "lm_head.weight" and not n.endswith(masks)}


def _value(st: STConfig, key: str, official: Official) -> object:
    """The value of a key of `st`, with the reference's own hidden width where it is null."""
    if key == "hidden" and st.hidden is None:
        return official.llm["n_embd"] * official.st.prefix_length // 2
    return getattr(st, key)


def _no_reference(file: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"official={file} is no ClipCap checkpoint of the reference: {reason}; "
        "name the *.pt file that its train.py saved"
    )
