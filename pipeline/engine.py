"""Training under DeepSpeed: stepping, saving, gathering.

With `zero.py` the only importer of deepspeed. The engine does not know models, phases or
data: it takes a module and named parameter groups, and losses that are already divided by the
global number of targets. It assumes `dist.start()` was called.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils import safe_get_full_fp32_param
from deepspeed.utils.tensor_fragment import fragment_address
from torch import nn

from pipeline import ds_config as ds
from pipeline import ds_writer
from pipeline.averages import Blend, MovingAverage, as_trained
from pipeline.config import PhaseConfig
from pipeline.dist import World
from pipeline.errors import CheckpointError, ConfigError
from pipeline.memory import checkpoint_bytes
from pipeline.optimizer import adamw, masters, settings_of, skip_what_is_not_finite, what_trains
from pipeline.phases import Group, split_by_decay
from pipeline.slices import Flat
from pipeline.zero import full_size, join, quiet, writable

TAG = "engine"  # of what DeepSpeed writes: a folder within a checkpoint's

# What its files hold besides tensors and plain values; nothing else is unpickled.
SAFE = (ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address)
# What DeepSpeed says, in an Exception of no class of its own, when fp16 has no scale left to try.
_NO_SCALE = "loss scale already at minimum"

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did: the global gradient norm, and whether it was skipped."""

    grad_norm: float
    skipped: bool


def resolve_precision(precision: str, device: torch.device) -> str:
    """bf16, fp16 or fp32 for `auto`: the best that the device computes in."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def check_precision(precision: str, device: torch.device) -> None:
    """Raises ConfigError for a resolved precision that the device cannot train in."""
    accelerator: Any = get_accelerator()
    able = {
        "bf16": accelerator.is_bf16_supported,
        "fp16": accelerator.is_fp16_supported,
        "fp32": lambda: True,
    }
    if not able[precision]():
        there = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
        usable = [each for each, can in able.items() if can()]
        raise ConfigError(
            f"precision={precision}: {there} does not compute in it; use auto, or one of "
            f"{', '.join(usable)}"
        )


def layout_of(ds_config: dict[str, Any], precision: str) -> str:
    """What a checkpoint can be loaded into, as text."""
    return f"ZeRO-{ds.zero_stage(ds_config)}, {precision}"


def dtype_of(precision: str) -> torch.dtype:
    """The compute dtype of a resolved precision."""
    return _DTYPES[precision]


class Engine:
    """One module under DeepSpeed with AdamW; learning rates are set from outside every step."""

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[Group],
        phase: PhaseConfig,
        *,
        name: str,
        precision: str,
        world: World,
    ) -> None:
        loaded = ds.read_ds_config(name, phase.ds_config)
        self.world = world
        self._precision = precision
        self.stage = ds.zero_stage(loaded)
        self.groups = tuple(split_by_decay(groups))
        self.layout = layout_of(loaded, precision)
        self._trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        self.trained_parameters = sum(full_size(p) for _, p in self._trained)
        self.all_parameters = sum(full_size(p) for p in module.parameters())
        self.trains = what_trains(self._trained, self.groups)
        config = ds.complete(
            loaded,
            clip_norm=phase.clip_norm,
            precision=precision,
            ranks=world.size,
            trained=self.trained_parameters,
        )
        self._settings = settings_of(self.groups, phase)
        join()
        with quiet():
            optimizer = adamw(self.groups, self._settings)
            if self.stage == 0 and precision == "fp32":
                skip_what_is_not_finite(optimizer)
            self._engine: Any = deepspeed.initialize(
                model=module, optimizer=optimizer, config=config, dist_init_required=False
            )[0]
        self.module = module
        self._writer = ds_writer.install(self._engine)
        self.checkpoint_bytes = checkpoint_bytes(
            self.trained_parameters,
            loaded,
            precision=precision,
            ranks=world.size,
            averaged=phase.ema > 0,
        )
        # Only now: without ZeRO, DeepSpeed takes a step without gradients to make the moments.
        self._average = MovingAverage(optimizer, phase.ema) if phase.ema else None
        stepped = self._engine.optimizer.param_groups
        self._masters = {} if self.stage else masters(stepped, self.groups)
        self._settled: set[str] = set()  # parameters that hold what is exported, masters included

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A forward pass of the module."""
        return self._engine(*args, **kwargs)

    def train(self, mode: bool = True) -> None:
        """Training or evaluation mode."""
        self._engine.train(mode)

    def set_lr(self, lr: float) -> dict[str, float]:
        """Sets every group's learning rate to its share of `lr`; returns them by group name.

        The two groups of one name (what decays, what does not) have the same rate.
        """
        rates = {each.name: lr * each.lr_scale for each in self.groups}
        for group, each in zip(self._engine.optimizer.param_groups, self.groups, strict=True):
            group["lr"] = rates[each.name]
        return rates

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of `loss`, a scalar whose sum over ranks and micro-batches is the
        step's loss. DeepSpeed averages over ranks, hence the factor.

        An infinite loss may have finite gradients; NaN makes sure that its step is skipped.
        """
        factor = torch.where(loss.detach().isfinite(), float(self.world.size), math.nan)
        self._engine.backward(loss * factor.to(loss.dtype), scale_wrt_gas=False)

    @property
    def scales_loss(self) -> bool:
        """True in fp16, which skips steps while it looks for the scale of the loss."""
        return self._precision == "fp16"

    def step(self) -> StepResult:
        """One optimizer step over all gradients since the last one.

        Non-finite gradients on any rank make every rank skip it. Raises ConfigError where fp16
        finds no scale at which they are finite.
        """
        before = int(self._engine.skipped_steps)
        try:
            self._engine.step()
        except Exception as error:
            if _NO_SCALE not in str(error):
                raise
            raise ConfigError(
                "precision=fp16: gradients are not finite at any scale of the loss; lower lr, "
                "raise warmup_steps, or use precision=bf16 or fp32 (the steps that were skipped, "
                "with their samples, are in skipped_steps.jsonl)"
            ) from error
        norm = self._engine.get_global_grad_norm()
        skipped = int(self._engine.skipped_steps) > before
        value = math.nan if norm is None else float(norm)
        return StepResult(value, skipped)

    def save(self, folder: Path) -> None:
        """Writes what trains and its optimizer state into `folder`, all ranks together.

        folder: may be each rank's own; what they write can be put together in one. Raises OSError
        on the ranks that could not write, when all are through: agree on it before anything else.
        """
        self._writer.begin()
        with quiet():
            self._engine.save_checkpoint(
                str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True
            )
        if self._writer.failure is not None:
            raise self._writer.failure

    def load(self, folder: Path) -> None:
        """Takes over what `save` wrote; only tensors are unpickled, never code.

        Raises CheckpointError when the files hold anything else or cannot be read.
        """
        try:
            with quiet(), _weights_only(), torch.serialization.safe_globals(list(SAFE)):
                self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
            for group, own in zip(self._engine.optimizer.param_groups, self._settings, strict=True):
                group.update(own)  # the recipe of now decides
        except (UnpicklingError, EOFError, OSError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint {folder} is damaged or not ours ({error}); delete that folder, the "
                "same command goes on from the one before"
            ) from error

    def flat_groups(self) -> list[Flat]:
        """The optimizer's flat tensors as this number of ranks has them, under ZeRO.

        DeepSpeed writes the same into its checkpoints (`param_shapes`).
        """
        optimizer = self._engine.optimizer
        slices = (
            optimizer.fp32_partitioned_groups_flat
            if self.stage == 3
            else optimizer.single_partition_of_fp32_groups
        )
        shapes = self._engine._get_zero_param_shapes()
        return [
            Flat({name: shape.numel() for name, shape in each.items()}, own.numel())
            for each, own in zip(shapes, slices, strict=True)
        ]

    def settle(self, blend: Blend = as_trained) -> None:
        """Makes the module what its export will be: for after the last step, on every rank.

        The average over steps where the phase has one, then `blend`. Afterwards the forward passes
        (of the last validation) are the export's; a further step would start from the average.
        """
        if self._average is not None:
            self._average.put_in_place()
        for name, parameter in self._trained:
            value = blend(name, self._full(parameter))
            with writable([parameter]) as writes, torch.no_grad():
                if writes:
                    parameter.copy_(value)
            if self._masters.get(parameter) is parameter:
                self._settled.add(name)

    def trained_tensors(self, blend: Blend = as_trained) -> dict[str, torch.Tensor]:
        """The trained parameters in float32 on the CPU of rank 0; empty on the other ranks.

        blend: of each trained tensor; the average over steps is in it only after `settle`.
        """
        gathered = {}
        for name, parameter in self._trained:
            value = self._full(parameter)
            if self.world.is_main:
                blended = value if name in self._settled else blend(name, value)
                gathered[name] = blended.detach().to("cpu", torch.float32).clone()
        return gathered

    def _full(self, parameter: nn.Parameter) -> torch.Tensor:
        """The whole parameter, from its float32 master where DeepSpeed keeps one; on every rank."""
        value: torch.Tensor | None = safe_get_full_fp32_param(parameter)
        return self._masters.get(parameter, parameter).detach() if value is None else value

    def close(self) -> None:
        """Frees what DeepSpeed holds, so that the next segment finds the memory."""
        with quiet():
            self._engine.destroy()


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """DeepSpeed asks torch.load for full pickles; this variable overrules every caller."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
