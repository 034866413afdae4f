"""What a segment asks of a rank's memory and of the disk, beside what there is.

Adds activations to the states of `pipeline/memory.py`, and says where ZeRO-3 pays for nothing.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import ds_config as ds
from pipeline.config import Config, PhaseConfig
from pipeline.dist import World
from pipeline.durable import existing
from pipeline.explain.parts import Census
from pipeline.explain.text import size, table
from pipeline.memory import Memory, Parameters, checkpoint_bytes, training_memory

_BESIDES = 2.5e9  # CUDA context and NCCL's buffers on a GPU


@dataclass(frozen=True)
class Need:
    """Bytes of one rank in one segment."""

    states: Memory
    activations: int | None
    logits: int | None

    @property
    def total(self) -> float:
        """At most, as far as it is known."""
        return self.states.total + (self.activations or 0) + (self.logits or 0)

    def column(self) -> list[str]:
        """The rows of a memory table."""
        states = self.states
        parts = [states.weights, states.gathered, states.gradients, states.optimizer]
        known = [*parts, states.buckets, self.activations, self.logits or 0, self.total]
        return [size(each) for each in known]


ROWS = (
    "weights",
    "gathered (ZeRO-3)",
    "gradients",
    "optimizer",
    "buckets",
    "activations",
    "logits and loss",
    "together",
)


def need(
    counted: Census,
    phase: PhaseConfig,
    loaded: Mapping[str, Any],
    *,
    precision: str,
    ranks: int,
) -> Need:
    """Of a rank; loaded: DeepSpeed's JSON."""
    states = training_memory(
        counted.parameters, loaded, precision=precision, ranks=ranks, averaged=phase.ema > 0
    )
    return Need(states, counted.activations, counted.logits)


def memory_table(title: str, columns: Sequence[str], needs: Sequence[Need]) -> str:
    """The needs of a phase's segments side by side."""
    cells = [each.column() for each in needs]
    rows = [[label, *(column[i] for column in cells)] for i, label in enumerate(ROWS)]
    return table(title, ["", *columns], rows)


def device_memory(world: World, *, imagined: bool) -> tuple[float, str] | None:
    """Bytes that a rank has here, and in words whose they are.

    imagined: the ranks are those of another machine (`plan_ranks`); then only a GPU that is here
    may stand for theirs, else the answer is None.
    """
    if world.device.type == "cuda":
        properties = torch.cuda.get_device_properties(world.device)
        return float(properties.total_memory), f"of {properties.name}"
    if imagined:
        return None
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return memory / world.local_size, "of this machine's memory for each of its ranks"


def verdict(largest: Need, world: World, *, imagined: bool) -> str:
    """Whether it fits."""
    device = device_memory(world, imagined=imagined)
    if device is None:
        return (
            f"{size(largest.total)} at most, and {size(_BESIDES)} for CUDA and NCCL; there is no "
            "GPU here to compare with"
        )
    there, whose = device
    besides = _BESIDES if world.device.type == "cuda" else 0.0
    # Without a GPU, what is offloaded lies in the same memory as everything else.
    asked = largest.total + (besides or largest.states.host)
    fits = "fits" if asked < 0.95 * there else "does NOT fit"
    extra = f" with {size(besides)} for CUDA and NCCL" if besides else ""
    return f"{size(asked)} at most{extra} against {size(there)} {whose}: {fits}"


def zero_advice(
    name: str,
    phase: PhaseConfig,
    counted: Census,
    world: World,
    precision: str,
    *,
    imagined: bool,
) -> str | None:
    """A word where ZeRO-3 gathers weights at every step although they would fit whole.

    SOURCE: ZeRO-3 communicates half as much again as data parallelism (Rajbhandari et al., ZeRO,
    2020, section 7), and a frozen model needs nothing but its weights.
    """
    loaded = ds.read_ds_config(name, phase.ds_config)
    if ds.zero_stage(loaded) != 3 or world.size == 1:
        return None
    whole = ds.read_ds_config(name, "zero2")
    second = need(counted, phase, whole, precision=precision, ranks=world.size).total
    third = need(counted, phase, loaded, precision=precision, ranks=world.size).total
    figures = f"{size(second)} a rank under ZeRO-2, {size(third)} under ZeRO-3"
    remedy = f"{name}.ds_config=zero2 saves gathering the weights in every step"
    device = device_memory(world, imagined=imagined)
    if second > third and device is None:
        return f"ZeRO-3 pays only on GPUs that {size(second)} do not fit on ({figures}); {remedy}"
    if second > third and device is not None and second + _BESIDES > 0.9 * device[0]:
        return None
    return f"ZeRO-3 pays for nothing here, the model fits whole ({figures}); {remedy}"


def phase_disk(
    phase: PhaseConfig, parameters: Sequence[Parameters], name: str, precision: str, ranks: int
) -> float:
    """Bytes of one checkpoint, in the segment where most trains."""
    loaded = ds.read_ds_config(name, phase.ds_config)
    trained = max((each.trained for each in parameters), default=0)
    return checkpoint_bytes(
        trained, loaded, precision=precision, ranks=ranks, averaged=phase.ema > 0
    )


def disk_needed(phase: PhaseConfig, checkpoint: float, export: float) -> float:
    """Bytes at the worst moment: a checkpoint is whole before the oldest goes.

    Without those that `keep_every` keeps for good, which are the user's to count.
    """
    kept = phase.keep_checkpoints + (phase.keep_best is not None)
    return checkpoint * (kept + 1) + export


def disk_free(config: Config) -> float:
    """Bytes free where the runs are, or will be."""
    return float(shutil.disk_usage(existing(Path(config.runs))).free)
