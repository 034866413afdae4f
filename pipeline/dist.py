"""Who am I among the processes of a run, and how all of them agree.

Works under the deepspeed launcher, torchrun, srun and alone, with gloo on CPUs and NCCL on GPUs.
Everything that one rank can decide alone is agreed here before anyone acts on it. Objects travel
as JSON: no pickle crosses a process boundary.
"""

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist

from pipeline.errors import ConfigError, UserError
from pipeline.presence import Presence

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """This process's place: its rank among all, and among those of its node."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    presence: Presence = field(default_factory=Presence, compare=False, repr=False)

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes and speaks."""
        return self.rank == 0


def resolve(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT of this process.

    Sources, in this order: the variables of deepspeed and torchrun, those of an srun step, alone.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        size = environment["WORLD_SIZE"]
        local_size = environment.get("LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", size))
        found = {
            "RANK": environment["RANK"],
            "WORLD_SIZE": size,
            "LOCAL_RANK": environment.get("LOCAL_RANK", "0"),
            "LOCAL_WORLD_SIZE": local_size,
        }
    elif "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        per_node = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
        found = {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
            "LOCAL_WORLD_SIZE": re.split(r"[^0-9]", per_node)[0],
        }
        found["MASTER_PORT"] = str(20000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000)
        found["MASTER_ADDR"] = _first_host(environment)
    else:
        found = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        found |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    for key in ("MASTER_ADDR", "MASTER_PORT"):
        if key in environment:
            found[key] = environment[key]
        elif key not in found:
            raise ConfigError(f"{key} is not set although RANK is; set it or use a launcher")
    return found


def start() -> World:
    """Joins the process group and returns this process's place; call once, before anything else.

    On GPUs each process takes the device of its local rank, or the only one it sees (srun with
    --gpus-per-task shows every process just its own).
    """
    found = resolve(os.environ)
    os.environ.update(found)
    rank, size = int(found["RANK"]), int(found["WORLD_SIZE"])
    local_rank, local_size = int(found["LOCAL_RANK"]), int(found["LOCAL_WORLD_SIZE"])
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        os.environ["LOCAL_RANK"] = str(device.index)  # deepspeed takes its device from here
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # The same number of threads under every launcher, so that sums are rounded alike; launchers
        # set OMP_NUM_THREADS each in its own way, EIM_THREADS is for the user.
        threads = int(os.environ.get("EIM_THREADS", "0"))
        torch.set_num_threads(threads or max((os.cpu_count() or 1) // local_size, 1))
    if not torch_dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch_dist.init_process_group(backend, rank=rank, world_size=size, timeout=TIMEOUT)
    return World(rank, size, local_rank, local_size, device)


def planned(ranks: int | None = None) -> World:
    """The place that this process would have, without joining anybody.

    ranks: as if so many had been launched, as many on each node as it has GPUs (8 where there are
    none); None takes the launch as it is.
    """
    found = resolve(os.environ)
    rank, size = int(found["RANK"]), int(found["WORLD_SIZE"])
    local_rank, local_size = int(found["LOCAL_RANK"]), int(found["LOCAL_WORLD_SIZE"])
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if ranks is not None:
        size, local_size = ranks, min(ranks, gpus or 8)
    device = torch.device("cuda", local_rank % gpus) if gpus else torch.device("cpu")
    return World(rank, size, local_rank, local_size, device)


def stop() -> None:
    """Leaves the process group; only after a run that ended well (never after an exception)."""
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def agree_any(flag: bool, world: World) -> bool:
    """True on every rank when the flag is true on at least one."""
    return sum_over_ranks([float(flag)], world)[0] > 0


def sum_over_ranks(values: Sequence[float], world: World) -> list[float]:
    """Element-wise sums of `values` over all ranks, in float64."""
    return _reduce(values, world, torch_dist.ReduceOp.SUM)


def max_over_ranks(values: Sequence[float], world: World) -> list[float]:
    """Element-wise maxima of `values` over all ranks, in float64."""
    return _reduce(values, world, torch_dist.ReduceOp.MAX)


def gather_json(value: Any, world: World) -> list[Any]:
    """The JSON-able `value` of every rank, in rank order, on every rank."""
    if world.size == 1:
        return [value]
    data = bytearray(json.dumps(value).encode())
    payload = torch.frombuffer(data, dtype=torch.uint8).to(world.device)
    length = torch.tensor([len(payload)], device=world.device)
    lengths = [torch.zeros_like(length) for _ in range(world.size)]
    torch_dist.all_gather(lengths, length)
    longest = max(int(each) for each in lengths)
    padded = torch.zeros(longest, dtype=torch.uint8, device=world.device)
    padded[: len(payload)] = payload
    received = [torch.empty_like(padded) for _ in range(world.size)]
    torch_dist.all_gather(received, padded)
    pairs = zip(received, lengths, strict=True)
    return [json.loads(bytes(each[: int(n)].cpu().numpy())) for each, n in pairs]


def from_main(value: Any, world: World) -> Any:
    """Rank 0's JSON-able `value`, on every rank: for what ranks could see differently on disk."""
    return gather_json(value if world.is_main else None, world)[0]


def on_main(action: Callable[[], T], world: World) -> T:
    """What rank 0's `action` returns (JSON-able), on every rank; so is its UserError."""
    result, failure = None, None
    if world.is_main:
        try:
            result = action()
        except UserError as error:
            failure = error
    message = from_main(None if failure is None else str(failure), world)
    if message is not None:
        raise failure or UserError(message)
    found: T = from_main(result, world)
    return found


def gather_rows(rows: torch.Tensor, world: World) -> list[torch.Tensor]:
    """Every rank's `rows` (n_r, ...), whose first dimension may differ, in rank order."""
    if world.size == 1:
        return [rows]
    count = torch.tensor([rows.shape[0]], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(world.size)]
    torch_dist.all_gather(counts, count)
    sizes = [int(each) for each in counts]
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    received = [torch.empty_like(padded) for _ in range(world.size)]
    torch_dist.all_gather(received, padded)
    return [each[:size] for each, size in zip(received, sizes, strict=True)]


def add_over_ranks(tensor: torch.Tensor, world: World) -> torch.Tensor:
    """The sum of `tensor` over all ranks, in place."""
    if world.size > 1:
        torch_dist.all_reduce(tensor)
    return tensor


def wait_for_all(world: World) -> None:
    """Returns when every rank has come here."""
    sum_over_ranks([0.0], world)


def _reduce(values: Sequence[float], world: World, operation: Any) -> list[float]:
    tensor = torch.tensor(list(values), dtype=torch.float64, device=world.device)
    if world.size > 1:
        torch_dist.all_reduce(tensor, op=operation)
    return [float(value) for value in tensor.tolist()]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first_host(environment: Mapping[str, str]) -> str:
    """The first host of the Slurm step; `localhost` would fail between nodes."""
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
    if not re.search(r"[\[,]", nodes):
        return nodes or "127.0.0.1"
    try:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(
            f"MASTER_ADDR is not set and scontrol cannot list {nodes} ({error}); export MASTER_ADDR"
        ) from error
    return listed.stdout.split()[0]
