"""DeepSpeed without an optimizer: how it is joined, and models that are built in ZeRO-3 partitions.

`engine.py` trains; what is here it shares with evaluation. A model in partitions is built, written
to and run by all ranks together. It assumes `dist.start()` was called, and knows no models.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import deepspeed
import torch
from deepspeed.utils import logger as deepspeed_logger
from torch import nn

from pipeline import ds_config as ds
from pipeline.dist import World
from pipeline.models.placement import Placement


class ZeroPlacement(Placement):
    """Builds a model directly in ZeRO-3 partitions, so that no rank holds a full copy."""

    def __init__(self, ds_config: dict[str, Any], precision: str, ranks: int) -> None:
        # The dtype travels in the config: zero.Init(dtype=...) is always bf16 on CPUs (0.19.8).
        self._config = ds.complete(
            ds_config, clip_norm=0.0, precision=precision, ranks=ranks, trained=1
        )

    @contextlib.contextmanager
    def skeleton(self) -> Iterator[None]:
        """Parameters of modules constructed inside are partitioned at once."""
        join()
        with quiet():
            context = deepspeed.zero.Init(config_dict_or_path=self._config)
        with context:
            yield

    @contextlib.contextmanager
    def writable(self, parameters: Sequence[nn.Parameter]) -> Iterator[bool]:
        """The full parameters inside; what rank 0 writes is what all partitions become."""
        with writable(parameters) as writes:
            yield writes


def placement_for(loaded: dict[str, Any], precision: str, world: World) -> Placement:
    """How models come into being under a DeepSpeed JSON: partitioned in ZeRO-3, else whole."""
    if ds.zero_stage(loaded) < 3:
        return Placement()
    return ZeroPlacement(loaded, precision, world.size)


def partition_for_inference(
    module: nn.Module, loaded: dict[str, Any], precision: str, world: World
) -> Callable[..., Any]:
    """The forward pass of a module that was built in ZeRO-3 partitions and never trains.

    Every rank calls it, and submodules of `module`, equally often (dummies included). loaded: the
    DeepSpeed JSON. Source: DeepSpeed's ZeRO inference, `initialize` without an optimizer.
    """
    config = ds.complete(loaded, clip_norm=0.0, precision=precision, ranks=world.size, trained=1)
    module.requires_grad_(False)
    join()
    with quiet():
        engine: Any = deepspeed.initialize(model=module, config=config, dist_init_required=False)[0]
    engine.eval()
    forward: Callable[..., Any] = engine
    return forward


@contextlib.contextmanager
def writable(parameters: Sequence[nn.Parameter]) -> Iterator[bool]:
    """See `Placement.writable`; parameters that are not partitioned are written by every rank."""
    partitioned = [each for each in parameters if hasattr(each, "ds_id")]
    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0):
        yield True if not partitioned else torch.distributed.get_rank() == 0


def full_size(parameter: nn.Parameter) -> int:
    """Elements of the whole parameter, also where this rank holds a partition."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def join() -> None:
    """DeepSpeed takes over the process group that `dist.start()` made."""
    if not deepspeed.comm.is_initialized():
        # On CPUs DeepSpeed would compile a shared-memory all-reduce for inference, which training
        # never calls: half a minute at first use, a compiler needed, and under srun the ranks of
        # two nodes were seen waiting minutes for each other's compilation.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        with quiet():
            deepspeed.init_distributed(
                torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False
            )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """DeepSpeed reports its inner life at INFO and WARNING; a stage's output is ours."""
    level = deepspeed_logger.level
    deepspeed_logger.setLevel("ERROR")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        deepspeed_logger.setLevel(level)
