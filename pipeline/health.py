"""Are the nodes of a job well: each looks at itself, then all ranks meet once.

For `slurm/health.sh`, which reads what is left in a folder: a file for each node, with `ok` or what
is wrong with it. Every look has a time limit, since a broken disk or GPU often just never answers.
Loads no model and no recipe's data.
"""

import os
import shutil
import socket
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as torch_dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pipeline.config import Config
from pipeline.data.cache import cache_of
from pipeline.data.manifest import MANIFEST_NAME, load_manifest
from pipeline.data.places import split_places
from pipeline.data.remote import is_remote
from pipeline.dist import resolve
from pipeline.errors import ConfigError, UserError

HEALTHY = "ok"
_MOST_SKEW_SECONDS = 30.0
_LEAST_SHARED_MEMORY, _LEAST_SCRATCH = 1 * 10**9, 5 * 10**9  # bytes
_LEAST_FREE_OF_A_GPU = 0.9  # of its memory: somebody else's process is on it otherwise
_UNREACHING, _ABSENT = "it does not reach", "its ranks did not come"


def look(folder: Path, config: Config, *, gpus: int, scratch: Path, seconds: float) -> str:
    """Looks at this node and leaves `ok`, or what is wrong with it, in `folder`/<its name>.

    gpus: how many there must be, all but unused. seconds: the most that each look may take.
    """
    looks: dict[str, Callable[[], str | None]] = {
        "/dev/shm": partial(_room, Path("/dev/shm"), _LEAST_SHARED_MEMORY),
        str(scratch): partial(_room, scratch, _LEAST_SCRATCH),
        "the shards": partial(_shards, config),
        "the GPUs": partial(_gpus, gpus),
    }
    found = [fault for what, each in looks.items() if (fault := _within(seconds, what, each))]
    said = "; ".join(found) or HEALTHY
    _leave(folder, _node(), said)
    return f"{_node()}: {said}"


def _within(seconds: float, what: str, action: Callable[[], str | None]) -> str | None:
    """The fault that a look finds, or that it does not come to its end."""
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(action()), daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return f"{what}: no answer within {seconds:.0f} s"
    return found[0] if found else f"{what}: the look itself failed, see the job's log"


def _room(place: Path, least: int) -> str | None:
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        return f"{place}: {error.strerror}"
    if free < least:
        return f"{place} has {free / 1e9:.1f} GB free, less than {least / 1e9:.0f}"
    return None


def _shards(config: Config) -> str | None:
    """All there by size, and the first of each split can be read."""
    try:
        for place in split_places(config.data):
            if is_remote(place) or (
                config.make_missing and not Path(place, MANIFEST_NAME).exists()
            ):
                continue
            manifest = load_manifest(place, cache_of(config.data))
            if manifest.shards and not is_remote(manifest.where(0)):
                with Path(manifest.where(0)).open("rb") as file:
                    file.read(1)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return None


def _gpus(expected: int) -> str | None:
    there = torch.cuda.device_count() if expected and torch.cuda.is_available() else 0
    if there != expected:
        return f"{there} GPUs, {expected} expected"
    for number in range(there):
        free, total = torch.cuda.mem_get_info(number)
        if free < _LEAST_FREE_OF_A_GPU * total:
            return f"GPU {number} has {free / 1e9:.0f} of {total / 1e9:.0f} GB free"
    return None


def meet(folder: Path, nodes: Sequence[str], seconds: float) -> str:
    """All ranks meet at the first one's store, add up one number each and compare their clocks.

    Who does not come within `seconds`, cannot reach the store or has another time than most is
    named in the folder, as `look` does it. nodes: with the same number of ranks on each, in order.

    Raises ConfigError where the meeting came to nothing, or a clock is off.
    """
    place = resolve(os.environ)
    rank, size, patience = int(place["RANK"]), int(place["WORLD_SIZE"]), timedelta(seconds=seconds)
    names = [nodes[each * len(nodes) // size] for each in range(size)]
    faults: dict[str, str] = {}  # by node
    try:
        where = place["MASTER_ADDR"], int(place["MASTER_PORT"])
        store = TCPStore(*where, size, rank == 0, patience, False)
        store.set(f"here-{rank}", "")
    except RuntimeError:
        faults[names[rank]] = f"{_UNREACHING} {names[0]} within {seconds:.0f} s"
    else:
        missing = _missing(store, size, time.monotonic() + seconds) if rank == 0 else []
        faults |= {names[each]: f"{_ABSENT} within {seconds:.0f} s" for each in missing}
        if not missing:
            clocks = _clocks(store, rank, size, int(place["LOCAL_RANK"]), patience)
            faults |= _skewed(names, clocks) if rank == 0 else {}
    for node, fault in faults.items():
        _leave(folder, node, fault)
    if faults:
        raise ConfigError("; ".join(f"{node}: {fault}" for node, fault in faults.items()))
    return f"{size} ranks met"


def judge(folder: Path, nodes: Sequence[str]) -> str:
    """After a meeting that failed: where no other node met the first one, that one alone is ill.

    Of two nodes nobody can tell which of them it is; the one that did not reach the first stays
    named. nodes: as `meet` had them.
    """
    first, *others = nodes
    said = [(folder / each).read_text(encoding="utf-8") for each in others]
    if len(others) < 2 or not all(each.startswith((_UNREACHING, _ABSENT)) for each in said):
        return "no node is named that was not named before"
    for each in others:
        _leave(folder, each, HEALTHY)
    _leave(folder, first, "no other node reaches it")
    return f"{first}: no other node reaches it"


def _skewed(names: Sequence[str], clocks: Sequence[float]) -> dict[str, str]:
    """What is wrong with the clocks of nodes that are not with most."""
    now = statistics.median_low(clocks)
    return {
        name: f"its clock is {each - now:+.0f} s off; set it by chrony or ntpd"
        for name, each in zip(names, clocks, strict=True)
        if abs(each - now) > _MOST_SKEW_SECONDS
    }


def _clocks(store: TCPStore, rank: int, size: int, local: int, patience: timedelta) -> list[float]:
    """Every rank's time, taken when all had come; in seconds since 1970."""
    gpus = torch.cuda.is_available()
    device = torch.device("cuda", local % torch.cuda.device_count()) if gpus else "cpu"
    torch_dist.init_process_group(
        "nccl" if gpus else "gloo", store=store, rank=rank, world_size=size, timeout=patience
    )
    one = torch.ones(1, device=device)
    torch_dist.all_reduce(one)
    assert one.item() == size, f"{size} ranks added up to {one.item()}"
    mine = torch.tensor([time.time()], dtype=torch.float64, device=device)
    found = [torch.zeros_like(mine) for _ in range(size)]
    torch_dist.all_gather(found, mine)
    return [float(each) for each in found]


def _missing(store: TCPStore, size: int, until: float) -> list[int]:
    """Ranks that have not come when the time is up; returns as soon as all have."""
    while True:
        missing = [each for each in range(size) if not store.check([f"here-{each}"])]
        if not missing or time.monotonic() > until:
            return missing
        time.sleep(0.2)


def _leave(folder: Path, node: str, said: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    writing = folder / f".{node}-{os.getpid()}"
    writing.write_text(said + "\n", encoding="utf-8")
    writing.replace(folder / node)


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
