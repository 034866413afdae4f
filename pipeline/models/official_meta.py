"""LLaMA weights as Meta publishes them: `params.json` beside `consolidated.NN.pth`.

One file a shard of model parallelism (13B has two); a tensor's parts lie in all of them. They are
mapped into memory and read with weights_only, one tensor at a time, so no shard is ever held. What
it assumes: the layout of LLaMA 1 to 3 without scaled RoPE; the tokenizer is not read here.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.weights import UNREADABLE, why_unreadable

PARAMS = "params.json"

_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.weight")
# Whole in every shard; all others are cut along their rows, or these along their columns.
_WHOLE = ("attention_norm.weight", "ffn_norm.weight", "norm.weight")
_BY_COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight")
_COMPUTED = "rope.freqs"  # by every implementation anew; LLaMA 1 and 2 carry it along
_CONTEXT = 2048  # tokens, of LLaMA 1; params.json does not say, later ones have more


def is_meta_folder(path: str) -> bool:
    """Whether the folder holds weights as Meta publishes them, and none of transformers."""
    folder = Path(path)
    return (folder / PARAMS).is_file() and not (folder / "config.json").is_file()


class MetaWeights:
    """The tensors of a folder under transformers' names, put together from all shards.

    Args:
        folder: with params.json and consolidated.NN.pth.

    Raises:
        ConfigError: there are no weights, or they are of a LLaMA that is not read here.
        CheckpointError: a file is damaged, or tensors are missing, unknown or of another model.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._params = _read_params(folder)
        self._shards = [_open(file) for file in _shard_files(folder)]
        self._source = self._sources()  # by transformers' name
        self.shapes = {name: self._shape(theirs) for name, theirs in self._source.items()}
        self.config = self._read_config()
        self._check_names()

    def __call__(self, name: str) -> Tensor | None:
        """The tensor of transformers' `name`, or None where there is none."""
        if name not in self._source:
            return None
        theirs = self._source[name]
        dim = self._cut(theirs)
        parts = [shard[theirs] for shard in self._shards]
        whole = parts[0] if dim is None else torch.cat(parts, dim)
        heads = self.config.num_attention_heads
        if theirs.endswith("attention.wq.weight"):
            return split_halves(whole, heads)
        if theirs.endswith("attention.wk.weight"):
            return split_halves(whole, self.config.num_key_value_heads or heads)
        return whole

    def _sources(self) -> dict[str, str]:
        """transformers' name -> Meta's. Raises CheckpointError for one that LLaMA has not."""
        every = dict.fromkeys(name for shard in self._shards for name in shard)
        named = {name: rename(name) for name in every if name != _COMPUTED}
        unknown = [name for name, ours in named.items() if ours is None]
        if unknown:
            raise CheckpointError(
                f"llm.path: {self._folder} holds tensors that LLaMA does not have: "
                f"{', '.join(sorted(unknown))}; name a folder with LLaMA's own weights"
            )
        return {ours: name for name, ours in named.items() if ours is not None}

    def _check_names(self) -> None:
        with torch.device("meta"):
            wanted = {name for name, _ in LlamaForCausalLM(self.config).named_parameters()}
        missing = sorted(wanted - self._source.keys())
        if missing:
            raise CheckpointError(
                f"llm.path: {self._folder} lacks {', '.join(missing)}; its weights are of another "
                "model or incomplete: fetch them again"
            )
        surplus = sorted(self._source[name] for name in self._source.keys() - wanted)
        if surplus:
            raise CheckpointError(
                f"llm.path: {self._folder} holds {', '.join(surplus)}, of which its {PARAMS} does "
                "not speak; fetch both from one model"
            )

    def _cut(self, name: str) -> int | None:
        """The dimension along which the shards cut a tensor; None where each has it whole."""
        if len(self._shards) == 1 or name.endswith(_WHOLE):
            return None
        if name == "tok_embeddings.weight":  # LLaMA 3 cuts the vocabulary, those before the width
            return int(self._shards[0][name].shape[1] != self._params["dim"])
        return int(name.endswith(_BY_COLUMNS))

    def _shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor. Raises CheckpointError where a shard lacks it."""
        for number, shard in enumerate(self._shards):
            if name not in shard:
                raise CheckpointError(
                    f"llm.path: {self._folder}: shard {number} lacks {name}; fetch it again"
                )
        shapes = [tuple(shard[name].shape) for shard in self._shards]
        rows, dim = list(shapes[0]), self._cut(name)
        if len(rows) not in (1, 2):
            raise CheckpointError(
                f"llm.path: {self._folder}: {name} is {shapes[0]}, no matrix; fetch it again"
            )
        if dim is not None:
            rows[dim] = sum(shape[dim] for shape in shapes if len(shape) > dim)
            shapes = [(*shape[:dim], 0, *shape[dim + 1 :]) for shape in shapes]
        if len(set(shapes)) > 1:
            raise CheckpointError(
                f"llm.path: {self._folder}: the shards are not of one model: {name} differs; "
                "fetch them again"
            )
        return tuple(rows)

    def _read_config(self) -> LlamaConfig:
        """What params.json says, and what only the tensors' shapes do."""
        params, heads = self._params, int(self._params["n_heads"])
        vocab, width = self._sized("lm_head.weight")
        inner, _ = self._sized("model.layers.0.mlp.gate_proj.weight")
        rows, _ = self._sized("model.layers.0.self_attn.q_proj.weight")
        if rows != params["dim"]:
            raise CheckpointError(
                f"llm.path: {self._folder}: its {len(self._shards)} shards hold {rows} of the "
                f"{params['dim']} rows of wq: a consolidated.NN.pth is missing; fetch it"
            )
        return LlamaConfig(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=int(params["n_layers"]),
            num_attention_heads=heads,
            num_key_value_heads=int(params.get("n_kv_heads") or heads),
            rms_norm_eps=float(params["norm_eps"]),
            rope_parameters={
                "rope_type": "default",
                "rope_theta": float(params.get("rope_theta", 10_000.0)),
            },
            max_position_embeddings=int(params.get("max_seq_len", _CONTEXT)),
            architectures=["LlamaForCausalLM"],
        )

    def _sized(self, name: str) -> tuple[int, ...]:
        if name not in self.shapes:
            raise CheckpointError(
                f"llm.path: {self._folder} lacks {name}; its weights are of another model or "
                "incomplete: fetch them again"
            )
        return self.shapes[name]


def split_halves(weight: Tensor, heads: int) -> Tensor:
    """A query's or key's projection from Meta's RoPE, which turns neighbouring rows of a head, to
    transformers', which turns a row of the first half with its fellow of the second.

    weight: (heads * d, D); returns the same rows in the other order.
    """
    return weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def rename(name: str) -> str | None:
    """Meta's name of a tensor -> transformers'; None for one that LLaMA does not have."""
    if name in _NAMES:
        return _NAMES[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _IN_LAYER:
        return None
    return f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}.weight"


def _read_params(folder: Path) -> dict[str, Any]:
    try:
        params: dict[str, Any] = json.loads((folder / PARAMS).read_text(encoding="utf-8"))
        missing = {"dim", "n_layers", "n_heads", "norm_eps"} - params.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"llm.path: {folder / PARAMS} cannot be read ({error}); fetch it again"
        ) from error
    if missing:
        raise ConfigError(
            f"llm.path: {folder / PARAMS} does not say {', '.join(sorted(missing))}; "
            "name a folder with LLaMA's own params.json"
        )
    _check_params(folder / PARAMS, params)
    if params.get("use_scaled_rope"):
        raise ConfigError(
            f"llm.path: {folder}: scaled RoPE (LLaMA 3.1 and later) is not read from Meta's "
            "files; name a folder in transformers' format"
        )
    return params


def _check_params(path: Path, params: Mapping[str, Any]) -> None:
    """Raises ConfigError for sizes that are none."""
    for key in ("dim", "n_layers", "n_heads"):
        if type(params[key]) is not int or params[key] < 1:
            raise ConfigError(
                f"llm.path: {path}: {key} is {params[key]!r}, no number of that; fetch it again"
            )
    for key in ("norm_eps", "rope_theta"):
        value = params.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"llm.path: {path}: {key} is {value!r}, no number; fetch it again")
    if params["dim"] % params["n_heads"]:
        raise ConfigError(
            f"llm.path: {path}: {params['n_heads']} heads (n_heads) do not divide dim "
            f"{params['dim']}; fetch it again"
        )


def _shard_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("consolidated.*.pth"))
    names = [f"consolidated.{number:02d}.pth" for number in range(len(files))]
    if not files or [file.name for file in files] != names:
        found = ", ".join(file.name for file in files) or "none"
        raise ConfigError(
            f"llm.path: {folder}: the shards consolidated.00.pth, 01, ... are not all there "
            f"(found: {found}); fetch the missing ones"
        )
    return files


def _open(file: Path) -> Mapping[str, Tensor]:
    """The tensors of one shard, mapped: a page is read when something uses it."""
    try:
        shard = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(
            f"llm.path: {file} cannot be read safely ({why_unreadable(error)}); fetch it again"
        ) from error
    if not isinstance(shard, Mapping) or not all(isinstance(v, Tensor) for v in shard.values()):
        raise CheckpointError(f"llm.path: {file} holds more than tensors; fetch Meta's own file")
    return shard
