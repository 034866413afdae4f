"""What a job script asks before it starts: are the shards good, are the nodes healthy.

For `slurm/common.sh`, which reads one line a question and knows no recipe. Loads no model.
"""

import os
import shutil
import socket
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as torch_dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pipeline.config import Config
from pipeline.data.manifest import check_file
from pipeline.dist import resolve
from pipeline.errors import ConfigError, UserError
from pipeline.prerequisites import shards_missing
from pipeline.splits import open_split, open_training

HEALTHY = "ok"
_MOST_SKEW_SECONDS = 30.0
_LEAST_SHARED_MEMORY, _LEAST_SCRATCH = 1 * 10**9, 5 * 10**9  # bytes
_LEAST_FREE_OF_A_GPU = 0.9  # of its memory: somebody else's process is on it otherwise


def shards_line(config: Config) -> str:
    """That all shards of the recipe are there, by size; DataError for the first that is not.

    `stages/prepare.py check` reads them, which takes as long as reading takes.
    """
    if config.make_missing and shards_missing(config):
        return "shards        are not there; the first phase makes them (make_missing=true)"
    splits = [open_training(config)]
    splits += [open_split(config, each) for each in (config.data.val_split, config.data.test_split)]
    checked = 0
    for manifest in (each for split in splits for each in split.manifests):
        for number, entry in enumerate(manifest.shards):
            if Path(manifest.where(number)).is_absolute():
                check_file(manifest.path(number), entry)
                checked += 1
    return f"shards        {checked} of {sum(each.shards for each in splits)} are here, and whole"


def health(folder: Path, config: Config, *, gpus: int, now: float, scratch: Path) -> str:
    """Looks at this node and leaves `ok`, or what is wrong with it, in `folder`/<host name>.

    gpus: how many there must be, all but unused. now: the time on the head node, in seconds.
    """
    found = "; ".join(_faults_of_node(config, gpus, now, scratch)) or HEALTHY
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _host()).write_text(found + "\n")
    return f"{_host()}: {found}"


def _faults_of_node(config: Config, gpus: int, now: float, scratch: Path) -> list[str]:
    skew = time.time() - now
    faults = []
    if abs(skew) > _MOST_SKEW_SECONDS:
        faults.append(f"its clock is {skew:.0f} s off the first node's")
    for place, least in ((Path("/dev/shm"), _LEAST_SHARED_MEMORY), (scratch, _LEAST_SCRATCH)):
        try:
            free = shutil.disk_usage(place).free
        except OSError as error:
            faults.append(f"{place}: {error.strerror}")
            continue
        if free < least:
            faults.append(f"{place} has {free / 1e9:.1f} GB free, less than {least / 1e9:.0f}")
    try:
        shards_line(config)
    except UserError as error:
        faults.append(str(error))
    return faults + (_faults_of_gpus(gpus) if gpus else [])


def _faults_of_gpus(expected: int) -> list[str]:

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    faults = [] if there == expected else [f"{there} GPUs of {expected}"]
    for number in range(there):
        free, total = torch.cuda.mem_get_info(number)
        if free < _LEAST_FREE_OF_A_GPU * total:
            faults.append(f"GPU {number} has {free / 1e9:.0f} of {total / 1e9:.0f} GB free")
    return faults


def meet(seconds: float) -> str:
    """All ranks meet at the first one's store and add up one number each.

    Raises ConfigError on the first rank with the hosts that did not come within `seconds`.
    """

    place = resolve(os.environ)
    rank, size = int(place["RANK"]), int(place["WORLD_SIZE"])
    patience = timedelta(seconds=seconds)
    store = TCPStore(
        place["MASTER_ADDR"], int(place["MASTER_PORT"]), size, rank == 0, patience, False
    )
    store.set(f"here-{rank}", _host())
    if rank == 0:
        missing = _missing(store, size, time.monotonic() + seconds)
        if missing:
            raise ConfigError(f"ranks {missing} of {size} did not come within {seconds:.0f} s")
    gpus = torch.cuda.is_available()
    backend = "nccl" if gpus else "gloo"
    torch_dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=patience
    )
    device = torch.device("cuda", int(place["LOCAL_RANK"])) if gpus else torch.device("cpu")
    one = torch.ones(1, device=device)
    torch_dist.all_reduce(one)
    torch_dist.barrier()
    return f"{int(one.item())} of {size} ranks met"


def _missing(store: TCPStore, size: int, until: float) -> list[int]:
    """Ranks that have not come when the time is up; returns as soon as all have."""
    while True:
        missing = [each for each in range(size) if not store.check([f"here-{each}"])]
        if not missing or time.monotonic() > until:
            return missing
        time.sleep(0.2)


def _host() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
