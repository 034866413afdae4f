"""What a checkpoint costs in time: a program to measure with, no test.

    deepspeed --num_gpus 2 tests/dist/store_cost.py FOLDER [STAGING]

Prints for half a million parameters (the quickstart's) and for thirty million, under ZeRO-3 and
ZeRO-1: seconds that training stood still, seconds until complete, and a step alone and meanwhile.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

from pipeline import dist
from pipeline.config import CheckpointsConfig, PhaseConfig
from pipeline.engine import Engine
from pipeline.ownership import Ownership
from pipeline.phases import Group
from pipeline.progress import Progress
from pipeline.retention import Retention
from pipeline.saving import Saver

SIZES = ((256, 8), (1024, 30))  # width, layers


def step(engine: Engine, width: int) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    engine.set_lr(1e-3)
    engine.backward(engine(torch.randn(8, width)).square().mean() / engine.world.size)
    engine.step()
    return time.perf_counter() - began


def measure(stage: int, width: int, layers: int, folder: Path, staging: str | None) -> None:
    """Three checkpoints in a row."""
    world = dist.start()
    module = nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)])
    phase = PhaseConfig(ds_config=str(folder / f"stage{stage}.json"))
    groups = [Group("all", list(module.parameters()), 1.0)]
    engine = Engine(module, groups, phase, name="cost", precision="fp32", world=world)
    settings, retention = CheckpointsConfig(staging=staging), Retention(last=2)
    place = folder / f"{stage}-{width}"
    saver = Saver(
        place, engine, "f", settings=settings, retention=retention, owner=Ownership(world)
    )
    alone = [step(engine, width) for _ in range(6)][-3:]
    for number in (1, 2, 3):
        dist.wait_for_all(world)
        began = time.perf_counter()
        saved = saver.begin(Progress(number))
        stalled, meanwhile = time.perf_counter() - began, []
        while saved is None:
            meanwhile.append(step(engine, width))
            if not dist.agree_any(saver.busy, world):
                saved = saver.advance()
        if world.is_main:
            print(
                f"ZeRO-{stage}, {engine.trained_parameters / 1e6:.1f} M parameters, "
                f"{saved.bytes / 1e6:.1f} MB: stood still {stalled:.3f} s, complete after "
                f"{saved.seconds:.3f} s, a step takes {sum(alone) / len(alone):.3f} s, meanwhile "
                f"{sum(meanwhile) / len(meanwhile):.3f} s, failure: {saved.failure}",
                flush=True,
            )
    engine.close()


def main() -> None:
    """Every rank measures all of them."""
    folder, *staging = [each for each in sys.argv[1:] if not each.startswith("--local")]
    world = dist.start()
    for stage in (3, 1):
        if world.is_main:
            Path(folder).mkdir(parents=True, exist_ok=True)
            config = {"zero_optimization": {"stage": stage}}
            (Path(folder) / f"stage{stage}.json").write_text(json.dumps(config))
        dist.wait_for_all(world)
        for width, layers in SIZES:
            measure(stage, width, layers, Path(folder), staging[0] if staging else None)
    dist.wait_for_all(world)
    os._exit(0)  # as in average_program.py


if __name__ == "__main__":
    main()
