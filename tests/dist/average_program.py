"""A program for several ranks: the engine's moving average beside one written out by hand.

    deepspeed --num_gpus 2 tests/dist/average_program.py FOLDER

Trains a small module under every ZeRO stage and precision, once whole and once stopped, saved and
loaded half-way; a step whose loss is not finite on one rank comes first. Writes
FOLDER/STAGE-PRECISION.json: how far the two averages are apart, whether the resumed run equals the
whole one, whether a forward pass after settling is the export's (which is blended, too), and
whether the steps that are not finite were skipped.
"""

import json
import math
import os
import sys
from pathlib import Path

import torch
from torch import nn

from pipeline import dist
from pipeline.config import CheckpointsConfig, PhaseConfig
from pipeline.engine import Engine, StepResult, dtype_of
from pipeline.identity import Identity
from pipeline.phases import Group
from pipeline.progress import Progress
from pipeline.resume import load_checkpoint
from pipeline.retention import Retention
from pipeline.saving import Saver
from tests.tiny import TIGHT_ZERO3

DECAY, STEPS, HALF = 0.7, 5, 2
IDENTITY = Identity({})


def build(stage: int, precision: str, folder: Path, world: dist.World) -> Engine:
    """A frozen layer, two that train at different rates, vectors among their parameters."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    module.to(dtype_of(precision))
    module[0].requires_grad_(False)
    groups = [
        Group("a", list(module[1].parameters()), 1.0),
        Group("b", [*module[2].parameters(), *module[3].parameters()], 0.5),
    ]
    phase = PhaseConfig(
        ds_config=str(folder / f"stage{stage}.json"), lr=0.05, ema=DECAY, weight_decay=0.1
    )
    return Engine(module, groups, phase, name="test", precision=precision, world=world)


def halved(name: str, value: torch.Tensor) -> torch.Tensor:
    """A blend that must not be applied twice."""
    return 0.5 * value


def step(engine: Engine, number: int, precision: str, *, plus: float = 0.0) -> StepResult:
    """One step; the data is the step's and the rank's. plus: to the loss of the last rank."""
    engine.set_lr(0.05 / (1 + number))
    generator = torch.Generator().manual_seed(10 * number + engine.world.rank)
    batch = torch.randn(4, 6, generator=generator).to(dtype_of(precision))
    loss = engine(batch).float().square().mean() / engine.world.size
    engine.backward(loss + plus if engine.world.rank == engine.world.size - 1 else loss)
    return engine.step()


def one(stage: int, precision: str, folder: Path, world: dist.World) -> dict[str, float]:
    """What is written for one stage and precision."""
    engine = build(stage, precision, folder, world)
    by_hand = engine.trained_tensors()
    bad = [step(engine, 90, precision, plus=each) for each in (math.nan, math.inf)]
    after_bad = engine.trained_tensors()
    skipped = all(each.skipped for each in bad)
    skipped &= all(torch.equal(by_hand[n], after_bad[n]) for n in by_hand)
    for number in range(STEPS):
        step(engine, number, precision)
        now = engine.trained_tensors()
        by_hand = {n: DECAY * by_hand[n] + (1 - DECAY) * now[n] for n in by_hand}
    by_hand = {n: halved(n, each) for n, each in by_hand.items()}
    last = engine.trained_tensors(halved)
    engine.settle(halved)
    whole = engine.trained_tensors(halved)
    probe = torch.ones(1, 6, dtype=dtype_of(precision))
    after = engine(probe).float().detach()
    engine.close()
    engine = build(stage, precision, folder, world)
    for number in range(HALF):
        step(engine, number, precision)
    path = save(folder / f"{stage}-{precision}", engine, Progress(HALF))
    engine.close()
    engine = build(stage, precision, folder, world)
    load_checkpoint(path, engine, IDENTITY)
    for number in range(HALF, STEPS):
        step(engine, number, precision)
    engine.settle(halved)
    resumed = engine.trained_tensors(halved)
    engine.close()
    if not world.is_main:
        return {}
    plain = build_plain(whole, precision)
    return {
        "apart": max(float((whole[n] - by_hand[n]).abs().max()) for n in whole),
        "moved": max(float((whole[n] - last[n]).abs().max()) for n in whole),
        "resumed": float(all(torch.equal(whole[n], resumed[n]) for n in whole)),
        "skipped": float(skipped),
        "forward": float((plain(probe).float() - after).detach().abs().max()),
    }


def save(folder: Path, engine: Engine, progress: Progress) -> Path:
    """Writes a checkpoint and waits until it is complete."""
    settings, retention = CheckpointsConfig(), Retention(last=1)
    saver = Saver(folder, engine, IDENTITY, settings=settings, retention=retention)
    saver.begin(progress)
    saved = saver.finish()
    assert saved is not None and saved.failure is None
    return saved.path


def build_plain(trained: dict[str, torch.Tensor], precision: str) -> nn.Module:
    """The module with the exported tensors in it, without DeepSpeed."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    module.load_state_dict(trained, strict=False)
    return module.to(dtype_of(precision))


def main() -> None:
    """Every rank runs all of them."""
    folder = Path(next(each for each in sys.argv[1:] if not each.startswith("--local")))
    world = dist.start()
    for stage in range(4) if world.is_main else ():
        config = TIGHT_ZERO3 if stage == 3 else {"zero_optimization": {"stage": stage}}
        (folder / f"stage{stage}.json").write_text(json.dumps(config))
    dist.wait_for_all(world)
    for stage in range(4):
        for precision in ("fp32", "bf16"):
            found = one(stage, precision, folder, world)
            if world.is_main:
                (folder / f"{stage}-{precision}.json").write_text(json.dumps(found))
    dist.wait_for_all(world)
    dist.stop()
    # Seen once: with all done, a rank died while Python shut down ("terminate called without an
    # active exception"). What that is about is not tested here.
    os._exit(0)


if __name__ == "__main__":
    main()
