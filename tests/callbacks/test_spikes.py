"""Losses that stand out are found, and steps without finite gradients are written down."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.callbacks.skips import Skips
from pipeline.callbacks.spikes import Spikes, deviation
from pipeline.callbacks.step_lines import StepLines
from pipeline.dist import World
from pipeline.errors import ConfigError

WORLD = World(0, 1, 0, 1, torch.device("cpu"))


class Board:
    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def scalars(self, values: dict[str, float], step: int) -> None:
        self.seen[step] = values["train/loss_spike"]

    def text(self, name: str, value: str, step: int) -> None:
        assert f"k{step}" in value


def step(number: int, loss: float, *, skipped: bool = False) -> SimpleNamespace:
    keys = (f"k{number}", f"l{number}")
    return SimpleNamespace(
        step=number, loss=loss, loss_share=loss, keys=keys, skipped=skipped, lrs={"st": 0.1}
    )


def trainer(*, scales_loss: bool = False) -> SimpleNamespace:
    progress = SimpleNamespace(step=0, recent_losses=[])
    return SimpleNamespace(progress=progress, engine=SimpleNamespace(scales_loss=scales_loss))


def test_a_loss_far_above_those_before_it_is_marked_with_its_samples(tmp_path: Path) -> None:
    path, board, watched = tmp_path / "loss_spikes.jsonl", Board(), trainer()
    spikes = Spikes(board, StepLines(path, WORLD), "st_align", window=50, threshold=6.0)
    noise = torch.Generator().manual_seed(0)
    losses = [4 - i / 50 + 0.1 * float(torch.randn((), generator=noise)) for i in range(100)]
    losses[10] = losses[70] = 9.0  # the first comes before there is anything to compare with
    for number, loss in enumerate(losses, start=1):
        spikes.on_step(watched, step(number, loss))
    assert list(board.seen) == [71]
    (line,) = [json.loads(each) for each in path.read_text().splitlines()]
    assert (line["step"], line["loss"], line["ranks"][0]["keys"]) == (71, 9.0, ["k71", "l71"])
    assert len(watched.progress.recent_losses) == 50


def test_a_loss_that_hardly_varies_has_no_spikes() -> None:
    assert deviation(4.01, [4.0] * 30) < 6.0
    assert deviation(8.0, [4.0] * 30) > 6.0


def test_skipped_steps_are_written_down_and_end_the_run_after_so_many_in_a_row(
    tmp_path: Path,
) -> None:
    path, newest = tmp_path / "skipped_steps.jsonl", tmp_path / "step-000002"
    skips = Skips(StepLines(path, WORLD), "st_align", most=3, newest=lambda: newest)
    nan = float("nan")
    for number, skipped in enumerate((True, True, False, True, True), start=1):
        skips.on_step(trainer(), step(number, nan if skipped else 1.0, skipped=skipped))
    with pytest.raises(ConfigError, match=rf"step 6 with the samples k6, l6.*{newest}"):
        skips.on_step(trainer(), step(6, nan, skipped=True))
    lines = [json.loads(each) for each in path.read_text().splitlines()]
    assert [each["step"] for each in lines] == [1, 2, 4, 5, 6]
    assert lines[0]["ranks"] == [{"loss": "nan", "keys": ["k1", "l1"]}]


def test_the_search_for_a_scale_in_fp16_ends_no_run(tmp_path: Path) -> None:
    skips = Skips(StepLines(tmp_path / "s", WORLD), "st_align", most=3, newest=lambda: None)
    for number in range(18):
        skips.on_step(trainer(scales_loss=True), step(number, 1.0, skipped=True))
    for number in range(2):
        skips.on_step(trainer(scales_loss=True), step(number, float("inf"), skipped=True))
    with pytest.raises(ConfigError, match="none yet"):
        skips.on_step(trainer(scales_loss=True), step(3, float("inf"), skipped=True))


def test_lines_of_steps_that_are_done_again_go_first(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    lines = StepLines(path, WORLD)
    for number in (2, 5, 7):
        lines.add(step(number, 1.0))
    with path.open("a") as file:
        file.write('{"step": 8, "ra')  # killed while it wrote
    lines.start(5)
    assert [json.loads(each)["step"] for each in path.read_text().splitlines()] == [2, 5]
