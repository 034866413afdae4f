"""The curve of a phase is continuous and the same, however often and however hard it is ended."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.callbacks.board import Board
from pipeline.callbacks.monitor import Monitor
from pipeline.dist import World
from pipeline.progress import Progress
from pipeline.trainer import StepRecord

WORLD = World(0, 1, 0, 1, torch.device("cpu"))
STEPS = 23


def curve(folder: Path, tag: str = "train/loss") -> list[tuple[int, float]]:
    board = EventAccumulator(str(folder))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(f"st_align/{tag}")]


def record(step: int) -> StepRecord:
    return StepRecord(
        step=step,
        loss=1.0 / (3 + step),
        loss_share=1.0 / (3 + step),
        keys=(),
        grad_norm=1.0,
        skipped=False,
        lrs={"st": 0.1},
        targets=3.0,
        records=2,
        padding=1.0 / step,
        data_seconds=0.0,
        seconds=0.01,
    )


def train(folder: Path, progress: Progress, until: int, *, saves: int = 4) -> Progress:
    """Steps of a run that saves every `saves` steps; returns what its last checkpoint holds."""
    board = Board(folder, WORLD, prefix="st_align", done=progress.step)
    trainer: Any = SimpleNamespace(progress=progress, world=WORLD, finished=False)
    monitor = Monitor(board, "test", total_steps=STEPS, log_every=5)
    monitor.on_start(trainer)
    saved = replace(progress)
    for step in range(progress.step + 1, until + 1):
        progress.step = step
        trainer.finished = step == STEPS
        monitor.on_step(trainer, record(step))
        if step % saves == 0:
            monitor.carry(trainer)
            saved = replace(progress)
    if until == STEPS:
        board.close()
    return saved


@pytest.mark.parametrize("killed_at", [3, 9, 16])
def test_a_killed_run_that_is_gone_on_with_has_the_curve_of_a_whole_one(
    killed_at: int, tmp_path: Path
) -> None:
    """Killed by SIGKILL, at steps before and after what its last checkpoint holds."""
    whole = train(tmp_path / "whole", Progress(), STEPS)
    child = os.fork()
    if child == 0:
        train(tmp_path / "killed", Progress(), killed_at)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    # Where the killed run's last checkpoint was, as it would be read back.
    saved = train(tmp_path / "same", Progress(), killed_at)
    gone_on = train(tmp_path / "killed", saved, STEPS)
    for tag in ("train/loss", "data/padding_fraction"):
        assert curve(tmp_path / "killed", tag) == curve(tmp_path / "whole", tag)
    assert [step for step, _ in curve(tmp_path / "killed")] == [5, 10, 15, 20, 23]
    assert gone_on.train_loss == whole.train_loss


def test_what_an_earlier_start_has_measured_of_the_last_step_is_not_shown_twice(
    tmp_path: Path,
) -> None:
    """Each start ends without closing, as if killed, and goes on from the checkpoint of step 4."""
    first = Board(tmp_path, WORLD, prefix="st_align", done=0)
    first.scalars({"train/loss": 1.0}, 4)
    first.scalars({"train/loss": 9.0}, 5)
    starts = [first]
    picture = Image.new("RGB", (2, 2))
    for start in range(3):
        starts.append(Board(tmp_path, WORLD, prefix="st_align", done=4, again=True))
        starts[-1].scalars({"val/loss": 2.0}, 4)
        if start:  # the first was killed between the two
            starts[-1].image("val/samples", picture, 4)
        starts[-1].scalars({"train/loss": 3.0, "val/loss": 4.0 + start}, 5)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert curve(tmp_path) == [(4, 1.0), (5, 3.0)]
    assert curve(tmp_path, "val/loss") == [(4, 2.0), (5, 6.0)]
    assert [each.step for each in events.Images("st_align/val/samples")] == [4]
    for each in starts:
        each.close()


def test_what_a_start_has_hidden_is_shown_again(tmp_path: Path) -> None:
    hidden = Board(tmp_path, WORLD, prefix="st_align", done=0)
    hidden.scalars({"val/loss": 1.0}, 4)
    back = Board(tmp_path, WORLD, prefix="st_align", done=2)  # from an older checkpoint
    back.scalars({"train/loss": 5.0}, 4)
    last = Board(tmp_path, WORLD, prefix="st_align", done=4, again=True)
    last.scalars({"val/loss": 2.0}, 4)
    assert curve(tmp_path, "val/loss") == [(4, 2.0)]
    for each in (hidden, back, last):
        each.close()


def test_points_are_on_disk_at_once(tmp_path: Path) -> None:
    board = Board(tmp_path, WORLD, prefix="st_align", done=0)
    board.scalars({"train/loss": 1.5}, 1)
    assert curve(tmp_path) == [(1, 1.5)]
    board.close()


def test_another_number_of_ranks_takes_over_the_whole_sum(tmp_path: Path) -> None:
    unshown = {"steps": [2.0], "loss_shares": [0.25, 0.5], "padding": [0.0]}
    progress = Progress(step=2, unshown=unshown)
    train(tmp_path, progress, STEPS)
    shares = sum(1.0 / (3 + step) for step in (3, 4, 5))
    step, value = curve(tmp_path)[0]
    assert step == 5 and value == pytest.approx((0.75 + shares) / 5, rel=1e-6)
