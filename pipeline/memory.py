"""Memory of a rank and size on disk of a run before it starts: parameters in, bytes out.

Pure arithmetic on the way this project uses DeepSpeed: all parameters in the compute dtype (but for
quantised ones), float32 masters and both Adam moments of what trains. It knows neither models nor
devices, and it counts tensors: a CUDA context (0.5 to 2 GiB), NCCL's buffers (1 to 2 GiB) and the
allocator's gaps come on top. `tests/dist/test_memory.py` holds it against the tensors that
DeepSpeed really allocates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}  # of a value in each precision

_MASTER_AND_MOMENTS = 12  # float32: the weight, its first and its second moment
# DeepSpeed's own defaults, in elements (deepspeed/runtime/zero/config.py, 0.19.8).
_LIVE, _PREFETCH, _PERSISTENT, _BUCKET, _SUB_GROUP = 10**9, 5 * 10**7, 10**5, 5 * 10**8, 10**9


@dataclass(frozen=True)
class Parameters:
    """What one engine holds, in elements."""

    trained: int
    frozen: int
    largest: int = 0  # of the module whose own parameters are most: gathered at once
    small: int = 0  # in tensors that ZeRO-3 never partitions (see `persistence_threshold`)
    quantized: int = 0  # of the frozen, held in few bits; then nothing is partitioned
    quantized_bytes: float = 0.0  # that these take, their scales included

    @property
    def all(self) -> int:
        """Trained and frozen together."""
        return self.trained + self.frozen


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the worst moment of a step, by what they are for."""

    weights: float  # in the compute dtype, partitioned under ZeRO-3
    gathered: float  # ZeRO-3: whole weights of the layers at work
    gradients: float
    optimizer: float  # masters and moments
    buckets: float  # communication buffers
    host: float = 0.0  # of these, what lies in host memory (offload); not in `total`

    @property
    def total(self) -> float:
        """On the device, activations not included."""
        return self.weights + self.gathered + self.gradients + self.optimizer + self.buckets


def training_memory(
    parameters: Parameters,
    ds_config: Mapping[str, Any],
    *,
    precision: str,
    ranks: int,
    averaged: bool = False,
) -> Memory:
    """States of a training step on one rank.

    With P parameters, T of them training, N ranks and c bytes of a value: ZeRO-1 and 2 hold cP
    weights, ZeRO-3 cP/N and what is gathered; masters and moments take 12T/N under each stage,
    gradients cT under ZeRO-1 and cT/N from ZeRO-2 on, and 4T/N more while a step casts them to
    float32. SOURCE: DeepSpeed docs/code-docs/source/memory.rst (18P/N + 4L), which counts neither
    frozen parameters nor that up to `stage3_max_live_parameters` (1e9) stay gathered between
    forward and backward.

    Args:
        parameters: of the module that DeepSpeed wraps.
        ds_config: DeepSpeed's JSON, as in `ds_configs/`.
        precision: bf16, fp16 or fp32.
        ranks: N.
        averaged: a moving average of the weights is kept, in float32, with the moments.
    """
    zero = ds_config.get("zero_optimization", {})
    stage = int(zero.get("stage", 0))
    size, trained = BYTES[precision], parameters.trained
    share = 1 if stage == 0 else ranks
    whole = size * (parameters.all - parameters.quantized) + parameters.quantized_bytes
    weights = whole / (ranks if stage == 3 else 1)
    gathered = size * _gathered(parameters, zero) * (1 - 1 / ranks) if stage == 3 else 0.0
    gradients = size * trained / (ranks if stage >= 2 else 1)
    if size < 4:  # cast for the optimizer, under ZeRO-3 one sub-group after the other
        cast = trained / share
        gradients += 4 * (min(cast, _sub_group(zero)) if stage == 3 else cast)
    # Plain float32 without ZeRO steps on the weights themselves: no masters.
    masters = _MASTER_AND_MOMENTS if stage or size < 4 else 8
    optimizer = (masters + 4 * averaged) * trained / share
    buckets = size * _bucket(trained, zero) * (2 if stage == 2 and zero.get("overlap_comm") else 1)
    host = 0.0
    if _offloads(zero, "offload_optimizer"):
        host, optimizer = host + optimizer, 0.0
    if stage == 3 and _offloads(zero, "offload_param"):
        host, weights = host + weights, 0.0
    return Memory(weights, gathered, gradients, optimizer, buckets if stage else 0.0, host)


def persistence_threshold(ds_config: Mapping[str, Any]) -> int:
    """Elements below which ZeRO-3 keeps a tensor whole on every rank."""
    zero = ds_config.get("zero_optimization", {})
    return int(zero.get("stage3_param_persistence_threshold", _PERSISTENT))


def checkpoint_bytes(
    trained: int,
    ds_config: Mapping[str, Any],
    *,
    precision: str,
    ranks: int,
    averaged: bool = False,
) -> float:
    """Of one checkpoint, all ranks together: what trains, its masters and its moments.

    Frozen parameters are not in it. The figures of a trained parameter are measured: 12 bytes under
    ZeRO-3 (masters and moments), and the weight itself below.
    """
    stage = int(ds_config.get("zero_optimization", {}).get("stage", 0))
    each = _MASTER_AND_MOMENTS + 4 * averaged + (0 if stage == 3 else BYTES[precision])
    return each * trained + 30_000 * ranks


def export_bytes(parameters: int) -> float:
    """Of an export: float32 of every parameter that differs from the base weights."""
    return 4.0 * parameters


def _gathered(parameters: Parameters, zero: Mapping[str, Any]) -> float:
    """Elements of whole weights that a rank has beside its partitions, as if it were alone."""
    live = max(int(zero.get("stage3_max_live_parameters", _LIVE)), parameters.largest)
    live += int(zero.get("stage3_prefetch_bucket_size", _PREFETCH))
    return min(parameters.all, live + parameters.small)


def _bucket(trained: int, zero: Mapping[str, Any]) -> int:
    """Elements of a reduction bucket; `ds_config.complete` bounds it by what trains."""
    return int(zero.get("reduce_bucket_size", min(trained, _BUCKET)))


def _sub_group(zero: Mapping[str, Any]) -> int:
    return int(zero.get("sub_group_size", _SUB_GROUP))


def _offloads(zero: Mapping[str, Any], key: str) -> bool:
    return bool(zero.get(key, {}).get("device", "none") != "none")
