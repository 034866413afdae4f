"""A program for several ranks: engines that go on from checkpoints of other numbers of ranks.

    deepspeed --num_gpus 3 tests/dist/ranks_program.py FOLDER ACTION ...

ACTION is `write` (train half-way, save, go on to the end) or `continue:N` (go on from what N ranks
have written), under every ZeRO stage and precision. Writes FOLDER/RANKS-from-N-STAGE-PRECISION.json
with the losses of the later steps, and the trained tensors of the end beside it.
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from pipeline import dist
from pipeline.config import PhaseConfig
from pipeline.engine import Engine, dtype_of
from pipeline.phases import Group
from pipeline.repartition import for_ranks_of
from tests.tiny import TIGHT_ZERO3

STEPS, HALF, RECORDS = 6, 3, 12
PRECISIONS = ("fp32", "bf16")


def build(stage: int, precision: str, folder: Path, world: dist.World) -> Engine:
    """Groups that decay and do not, one of them a single number, beside frozen layers."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(6, 5), nn.Linear(5, 7), nn.LayerNorm(7), nn.PReLU(), nn.Linear(7, 3)
    )
    module.to(dtype_of(precision))
    module[0].requires_grad_(False)
    groups = [
        Group("a", list(module[1].parameters()), 1.0),
        Group("scale", list(module[3].parameters()), 0.1),
        Group("b", [*module[2].parameters(), *module[4].parameters()], 0.5),
    ]
    phase = PhaseConfig(ds_config=_config(stage, folder), lr=0.05, ema=0.7, weight_decay=0.3)
    return Engine(module, groups, phase, name="test", precision=precision, world=world)


def _config(stage: int, folder: Path) -> str:
    """Under ZeRO-3 in several sub-groups, which differ between numbers of ranks."""
    zero = {"zero_optimization": {"stage": stage}} if stage < 3 else TIGHT_ZERO3
    if stage == 3:
        zero = {"zero_optimization": {**zero["zero_optimization"], "sub_group_size": 9}}
    path = folder / f"stage{stage}-{os.getpid()}.json"
    path.write_text(json.dumps(zero))
    return str(path)


def step(engine: Engine, number: int, precision: str) -> float:
    """One step over the same records whatever the number of ranks; returns its loss."""
    engine.set_lr(0.05 / (1 + number))
    generator = torch.Generator().manual_seed(number)
    batch = torch.randn(RECORDS, 6, generator=generator).to(dtype_of(precision))
    own = batch[engine.world.rank :: engine.world.size]
    loss = engine(own).float().square().sum() / RECORDS
    engine.backward(loss)
    engine.step()
    return dist.sum_over_ranks([float(loss.detach())], engine.world)[0]


def one(stage: int, precision: str, folder: Path, action: str, world: dist.World) -> None:
    """Trains, from the start or from what other ranks have saved, and writes how it went."""
    engine = build(stage, precision, folder, world)
    origin = world.size if action == "write" else int(action.partition(":")[2])
    saved = folder / f"{origin}-{stage}-{precision}"
    if action == "write":
        for number in range(HALF):
            step(engine, number, precision)
        engine.save(saved)
        dist.wait_for_all(world)
    else:
        with for_ranks_of(engine, saved, origin) as readable:
            engine.load(readable)
    losses = [step(engine, number, precision) for number in range(HALF, STEPS)]
    engine.settle()
    tensors = engine.trained_tensors()
    engine.close()
    if world.is_main:
        name = f"{world.size}-from-{action.partition(':')[2] or 'start'}-{stage}-{precision}"
        (folder / f"{name}.json").write_text(json.dumps(losses))
        save_file(tensors, folder / f"{name}.safetensors")


def main() -> None:
    """Every rank runs all of them."""
    folder, *actions = [each for each in sys.argv[1:] if not each.startswith("--local")]
    world = dist.start()
    for action in actions:
        for stage in range(4):
            for precision in PRECISIONS:
                one(stage, precision, Path(folder), action, world)
    dist.wait_for_all(world)
    dist.stop()
    os._exit(0)  # as in average_program.py


if __name__ == "__main__":
    main()
