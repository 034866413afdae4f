"""What holds on CPUs holds on GPUs: precision, NCCL between two of them, offload to host memory.

Skipped where there is no GPU; a test that needs two says so on a machine with one.
"""

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.config import PHASES
from pipeline.export_files import ExportTensors
from tests.dist.launch import launch, succeeded
from tests.tiny import TIGHT_ZERO3, write_recipe

pytestmark = pytest.mark.gpu

# cuDNN convolves float32 in TF32, whose rounding depends on the algorithm that it picks by size.
ROUNDING = 1e-3


def require_gpus(count: int) -> None:
    found = torch.cuda.device_count()
    if found < count:
        pytest.skip(f"needs {count} CUDA GPU(s), {found} found")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All phases on one GPU: in its own precision, in float32, with offload; then evaluated."""
    require_gpus(1)
    folder = tmp_path_factory.mktemp("gpu")
    recipe = f"recipe={_recipe(folder)}"
    plan: list[tuple[str, list[str]]] = [("prepare", [recipe]), ("pretrain", [recipe])]
    for phase in PHASES:
        plan.append((phase, [recipe, "name=auto", "precision=auto"]))
        plan.append((phase, [recipe, "name=single"]))
        plan.append((phase, [recipe, "name=offload", f"{phase}.ds_config=zero3_offload"]))
        plan.append((phase, [recipe, "name=saving", f"{phase}.activation_checkpointing=true"]))
    _run(folder, plan, gpus=1)
    return folder / "runs"


def test_the_best_precision_is_chosen_and_stays_near_float32(runs: Path) -> None:
    best = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    for phase in PHASES:
        summary = json.loads((runs / "auto" / phase / "summary.json").read_text())
        assert (summary["state"], summary["precision"]) == ("finished", best)
        _agree(runs / "auto", runs / "single", phase, tolerance=0.05)


@pytest.mark.parametrize("other", ["offload", "saving"])
def test_offload_and_activation_checkpointing_change_no_loss(runs: Path, other: str) -> None:
    for phase in PHASES:
        _agree(runs / other, runs / "single", phase, tolerance=ROUNDING)


def test_two_gpus_over_nccl_equal_one(runs: Path) -> None:
    require_gpus(2)
    recipe = f"recipe={runs.parent / 'tiny.yaml'}"
    _run(runs.parent, [(phase, [recipe, "name=two"]) for phase in PHASES], gpus=2)
    for phase in PHASES:
        _agree(runs / "two", runs / "single", phase, tolerance=ROUNDING)


@pytest.mark.parametrize("phase", ["encoder_adapt", "llm_tune"])
def test_deterministic_runs_end_bit_for_bit_where_uninterrupted_ones_do(
    runs: Path, phase: str
) -> None:
    alone = ["encoder_adapt.enabled=false", "st_align.enabled=false"]
    recipe = [f"recipe={runs.parent / 'tiny.yaml'}", "deterministic=true", "precision=auto"]
    recipe += alone if phase == "llm_tune" else []
    for name, stop in (("once", []), ("twice", [f"{phase}.stop_after=3"]), ("twice", [])):
        succeeded(launch(f"stages/{phase}.py", [*recipe, f"name={name}", *stop], ranks=1))
    once, twice = (ExportTensors(runs / name / phase / "export") for name in ("once", "twice"))
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_captions_come_from_the_gpu(runs: Path) -> None:
    arguments = [f"recipe={runs.parent / 'tiny.yaml'}", "name=auto", "precision=auto"]
    metrics = "evaluate.metrics=[quick_cider]"
    succeeded(launch("stages/evaluate.py", [*arguments, metrics], ranks=1))
    folder = runs / "auto" / "evaluate" / "test"
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 10
    assert json.loads((folder / "metrics.json").read_text())["loss"] > 0


def _recipe(folder: Path) -> Path:
    tight = folder / "tight.json"
    tight.write_text(json.dumps(TIGHT_ZERO3))
    return write_recipe(folder, ds_config=str(tight))


def _run(folder: Path, plan: list[tuple[str, list[str]]], *, gpus: int) -> None:
    path = folder / f"plan{gpus}.json"
    path.write_text(json.dumps(plan))
    succeeded(launch("tests/dist/phases_program.py", [str(path)], ranks=gpus))


def _agree(first: Path, second: Path, phase: str, *, tolerance: float) -> None:
    """Both runs' training losses, step by step, within a relative tolerance."""
    losses = []
    for run in (first, second):
        board = EventAccumulator(str(run / phase / "tensorboard"))
        board.Reload()
        losses.append({each.step: each.value for each in board.Scalars(f"{phase}/train/loss")})
    assert losses[0].keys() == losses[1].keys() and losses[0]
    for step, loss in losses[1].items():
        assert losses[0][step] == pytest.approx(loss, rel=tolerance), (phase, step)
