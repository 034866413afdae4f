"""A program for several ranks: checkpoints under real engines, with disks that fail.

    deepspeed --num_gpus 2 tests/dist/store_program.py FOLDER

Writes FOLDER/STAGE.RANK.json, what each rank saw under ZeRO-3 and ZeRO-1, and FOLDER/run.RANK.json,
what it saw of a whole phase. Disks fail by RLIMIT_FSIZE, which binds root too.
"""

import contextlib
import json
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from pipeline import dist, saving
from pipeline.checkpoint import choose_checkpoint
from pipeline.checkpoint_files import checkpoints, fault_in
from pipeline.config import CheckpointsConfig, PhaseConfig
from pipeline.engine import Engine
from pipeline.errors import CheckpointError
from pipeline.identity import Identity
from pipeline.phases import Group
from pipeline.prerequisites import make_shards
from pipeline.pretrain import pretrain
from pipeline.progress import Progress
from pipeline.recipe import load_recipe
from pipeline.resume import load_checkpoint
from pipeline.retention import Retention
from pipeline.run import run_phase
from pipeline.saving import Saved, Saver
from pipeline.stage import configure_logging
from tests.tiny import TIGHT_ZERO3, write_recipe

IDENTITY = Identity({})
WIDTH, HIDDEN = 64, 1 << 15  # 64 * 64 weights train, a thousand times as many do not


def build(stage: int, folder: Path, world: dist.World) -> Engine:
    """A module whose frozen part is large beside what trains."""
    torch.manual_seed(0)
    frozen = [nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)]
    module = nn.Sequential(*frozen, nn.Linear(WIDTH, WIDTH))
    module.requires_grad_(False)
    module[-1].requires_grad_(True)
    groups = [Group("last", list(module[-1].parameters()), 1.0)]
    phase = PhaseConfig(ds_config=str(folder / f"stage{stage}.json"), lr=0.05)
    return Engine(module, groups, phase, name="test", precision="fp32", world=world)


def step(engine: Engine, number: int) -> None:
    """One step; the data is the step's and the rank's."""
    engine.set_lr(0.05 / (1 + number))
    generator = torch.Generator().manual_seed(10 * number + engine.world.rank)
    batch = torch.randn(4, WIDTH, generator=generator)
    engine.backward(engine(batch).square().mean() / engine.world.size)
    engine.step()


@contextlib.contextmanager
def full_disk(really: bool) -> Iterator[None]:
    """No file of this process grows beyond a few bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if really:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def moving(*, seconds: float = 0.0, full: bool = False) -> Any:
    """The thread's work on a slow disk or a full one."""
    real = saving.move_in

    def move_in(*arguments: Any) -> Any:
        time.sleep(seconds)
        with full_disk(full):
            return real(*arguments)

    return mock.patch.object(saving, "move_in", move_in)


def write(saver: Saver, number: int) -> Saved:
    """Begins and finishes one checkpoint."""
    ended = saver.begin(Progress(number)) or saver.finish()
    assert ended is not None
    return ended


def under_one_stage(stage: int, folder: Path, staging: Path, world: dist.World) -> dict[str, Any]:
    """What this rank saw."""
    there, last = folder / f"checkpoints-{stage}", world.rank == world.size - 1
    engine = build(stage, folder, world)
    seen = on_a_slow_disk(saver_of(engine, there, staging), engine, there, last)
    seen |= {"trained": engine.trained_parameters, "all": engine.all_parameters}
    engine.close()

    engine = build(stage, folder, world)
    load_checkpoint(there / "step-000001", engine, IDENTITY)
    loaded, at_begin = engine.trained_tensors(), seen.pop("at begin")
    seen["is of its step"] = all(torch.equal(loaded[n], at_begin[n]) for n in loaded)
    saver = saver_of(engine, there, staging)
    with full_disk(last):
        seen["full staging"] = write(saver, 2).failure
    with moving(full=last):
        seen["full target"] = write(saver, 3).failure
    dist.wait_for_all(world)
    seen["after failures"] = names(there)
    seen["staging left"] = names(staging)
    dist.wait_for_all(world)  # before another rank writes there again

    seen["room again"] = [write(saver, number).failure for number in (4, 5)]
    dist.wait_for_all(world)
    if world.is_main:
        flip(sorted((there / "step-000005" / "engine").glob(f"*rank_{world.size - 1}_*"))[-1])
    dist.wait_for_all(world)
    chosen = choose_checkpoint(there, 0, 9, world)
    seen["chosen"] = None if chosen is None else chosen.name
    seen["after the choice"] = names(there)
    engine.close()
    return seen


def on_a_slow_disk(saver: Saver, engine: Engine, there: Path, last: bool) -> dict[str, Any]:
    """The last rank's thread takes its time; all ranks go on training."""
    step(engine, 0)
    at_begin, number = engine.trained_tensors(), 1
    with moving(seconds=1.0 * last):
        assert saver.begin(Progress(1)) is None
        while dist.agree_any(saver.busy, engine.world):
            marked = bool(checkpoints(there))
            step(engine, number)
            number += 1
        saved = saver.finish()
    assert saved is not None
    files = [each for each in saved.path.rglob("*") if each.is_file()]
    return {
        "at begin": at_begin,
        "steps meanwhile": number - 1,
        "marked too early": marked,
        "failure": saved.failure,
        "fault": fault_in(saved.path),
        "bytes": saved.bytes,
        "bytes on disk": sum(each.stat().st_size for each in files),
        "expected bytes": engine.checkpoint_bytes,
        "files": sorted(each.relative_to(saved.path).as_posix() for each in files),
    }


def saver_of(engine: Engine, there: Path, staging: Path) -> Saver:
    """Two checkpoints are kept."""
    settings = CheckpointsConfig(staging=str(staging))
    return Saver(there, engine, IDENTITY, settings=settings, retention=Retention(last=2))


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(each.name for each in folder.iterdir())


def flip(path: Path) -> None:
    """One bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class Lines(logging.Handler):
    """The lines that a user would see."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the line."""
        self.lines.append(record.getMessage())


def a_phase(folder: Path, recipe: str, world: dist.World) -> dict[str, Any]:
    """A phase whole, a phase whose newest checkpoint is damaged, a phase that cannot write any."""
    lines, seen = Lines(), dict[str, Any]()
    logging.getLogger("pipeline").addHandler(lines)

    def run(name: str, *changes: str) -> None:
        lines.lines.clear()
        run_phase(load_recipe([recipe, f"name={name}", *changes]), "st_align", world)

    def on_main(action: Callable[[], Any]) -> None:
        if world.is_main:
            action()
        dist.wait_for_all(world)

    make_shards(load_recipe([recipe]), world)
    pretrain(load_recipe([recipe]), world)
    run("whole")

    phase = folder / "runs" / "stopped" / "st_align"
    on_main(lambda: phase.mkdir(parents=True))
    on_main((phase / "SAVE").touch)
    run("stopped", "st_align.stop_after=3", "st_align.checkpoint_every=100")
    seen["asked for"] = [names(phase / "checkpoints"), (phase / "SAVE").exists()]
    newest = phase / "checkpoints" / "step-000003"
    on_main(lambda: flip(sorted((newest / "engine").iterdir())[-1]))
    run("stopped", "st_align.keep_checkpoints=1", "st_align.keep_every=2")
    seen["passed over"] = [each for each in lines.lines if "passed over" in each]
    seen["goes on"] = [each for each in lines.lines if "goes on from" in each]
    seen["at the end"] = names(phase / "checkpoints")

    on_main((folder / "a-file").touch)
    try:
        run("broken", f"checkpoints.staging={folder / 'a-file'}", "checkpoints.attempts=2")
    except CheckpointError as error:
        seen["gave up"] = str(error)
    seen["warned"] = [each for each in lines.lines if "could not be written" in each]

    unwritable = (f"checkpoints.staging={folder / 'a-file'}", "checkpoints.attempts=5")
    run("unsaved", "st_align.stop_after=2", "st_align.checkpoint_every=100", *unwritable)
    seen["tried"] = sum("in a row that end the run" in each for each in lines.lines)
    return seen


def main() -> None:
    """Every rank runs all of it."""
    folder = Path(next(each for each in sys.argv[1:] if not each.startswith("--local")))
    world = dist.start()
    configure_logging(speaks=world.is_main)
    place = None
    if world.is_main:
        memory = Path("/dev/shm")  # another file system, where there is one
        place = tempfile.mkdtemp(prefix="eim-test-", dir=memory if memory.is_dir() else None)
        for stage, config in ((3, TIGHT_ZERO3), (1, {"zero_optimization": {"stage": 1}})):
            (folder / f"stage{stage}.json").write_text(json.dumps(config))
    staging = Path(dist.from_main(place, world))
    for stage in (3, 1):
        seen = under_one_stage(stage, folder, staging, world)
        (folder / f"{stage}.{world.rank}.json").write_text(json.dumps(seen))
    if world.is_main:
        tight, every = str(folder / "stage3.json"), {"st_align__checkpoint_every": 1}
        write_recipe(folder, ds_config=tight, encoder_adapt__enabled=False, **every)
    dist.wait_for_all(world)
    seen = a_phase(folder, f"recipe={folder / 'tiny.yaml'}", world)
    (folder / f"run.{world.rank}.json").write_text(json.dumps(seen))
    dist.wait_for_all(world)
    if world.is_main:
        shutil.rmtree(staging, ignore_errors=True)
    dist.stop()
    os._exit(0)  # as in average_program.py


if __name__ == "__main__":
    main()
