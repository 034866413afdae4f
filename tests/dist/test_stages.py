"""Stages as users start them: three launchers, from nothing to scores, and the user's mistakes."""

import json
import os
from pathlib import Path

import pytest
import torch

from pipeline.config import PHASES
from pipeline.data.files import sha256_of
from tests.dist.launch import launch, succeeded
from tests.helpers import require_system
from tests.tiny import write_recipe

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """`stages/evaluate.py` alone, in an empty folder: it makes all that it needs."""
    require_system("java")
    folder = tmp_path_factory.mktemp("stages")
    recipe = f"recipe={write_recipe(folder)}"
    succeeded(launch("stages/evaluate.py", [recipe], ranks=2, launcher="deepspeed"))
    return folder, recipe


def test_one_command_makes_what_it_needs_and_scores(whole: tuple[Path, str]) -> None:
    run = whole[0] / "runs" / "tiny"
    for phase in PHASES:
        assert json.loads((run / phase / "summary.json").read_text())["state"] == "finished"
        assert (run / phase / "export" / "weights.safetensors").is_file()
    assert (run / "config.yaml").is_file()
    metrics = json.loads((run / "evaluate" / "test" / "metrics.json").read_text())
    assert metrics["records"] == 10
    assert {"Bleu_1", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"} <= metrics["scores"].keys()
    assert {"i2t_r1", "t2i_r10"} <= metrics["retrieval"].keys()
    lines = (run / "evaluate" / "test" / "predictions.jsonl").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    assert sorted(each["image_id"] for each in predictions) == list(range(10))
    assert all(isinstance(each["caption"], str) for each in predictions)


def test_the_same_scores_on_one_rank_under_torchrun(whole: tuple[Path, str]) -> None:
    folder, recipe = whole
    path = folder / "runs" / "tiny" / "evaluate" / "test" / "metrics.json"
    first = json.loads(path.read_text())
    changes = [recipe, "evaluate.batch=3"]
    succeeded(launch("stages/evaluate.py", changes, ranks=1, launcher="torchrun"))
    second = json.loads(path.read_text())
    assert second["scores"] == first["scores"]
    assert second["retrieval"] == first["retrieval"]
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)


def test_the_baseline_and_the_report(whole: tuple[Path, str]) -> None:
    folder, recipe = whole
    baseline = [recipe, "baseline=true", "evaluate.metrics=[quick_cider]"]
    succeeded(launch("stages/evaluate.py", baseline, ranks=1))
    runs = folder / "runs"
    seen = [
        json.loads((runs / "tiny" / phase / "summary.json").read_text())["records_seen"]
        for phase in PHASES
    ]
    base = json.loads((runs / "tiny-baseline" / "llm_tune" / "summary.json").read_text())
    assert abs(base["records_seen"] - sum(seen)) <= 12  # one global batch
    assert not (runs / "tiny-baseline" / "st_align").exists()
    report = succeeded(launch("stages/report.py", [recipe], ranks=1))
    for part in ("baseline", "EIM", "CIDEr", "llm_tune", "tensorboard --logdir"):
        assert part in report


def test_a_finished_phase_is_skipped_and_another_recipe_is_refused(
    whole: tuple[Path, str],
) -> None:
    folder, recipe = whole
    weights = folder / "runs" / "tiny" / "st_align" / "export" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    harmless = [recipe, "st_align.log_every=3"]
    again = launch("stages/st_align.py", harmless, ranks=1)
    assert "st_align      is finished already" in succeeded(again)
    other = launch("stages/st_align.py", [recipe, "st_align.lr=5e-3"], ranks=1)
    assert other.returncode == 2
    assert "overwrite=true" in other.stderr.splitlines()[-1]
    assert weights.stat().st_mtime_ns == before


def test_a_predecessor_that_is_missing_is_named(whole: tuple[Path, str]) -> None:
    changes = [whole[1], "name=fresh", "make_missing=false"]
    done = launch("stages/llm_tune.py", changes, ranks=1)
    assert done.returncode == 2
    assert "llm_tune starts from st_align, which is not finished" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_predecessor_of_another_recipe_is_refused(whole: tuple[Path, str]) -> None:
    changes = [whole[1], "st_align.lr=9", "make_missing=false", "overwrite=true"]
    done = launch("stages/llm_tune.py", changes, ranks=1)
    assert done.returncode == 2
    assert "was made with other values: st_align.lr: " in done.stderr.splitlines()[-1]


def test_wrong_sizes_are_found_before_anything_is_encoded(whole: tuple[Path, str]) -> None:
    folder, recipe = whole
    before = set((folder / "runs" / "features").iterdir())
    for change in ("data.max_tokens=127", "st.kind=transformer", "evaluate.metrics=[bleuu]"):
        arguments = [recipe, "name=other", change, "st.num_heads=5"]
        done = launch("stages/evaluate.py", arguments, ranks=1)
        assert done.returncode == 2, change
        assert done.stderr.splitlines()[-1].startswith("error: "), change
    assert set((folder / "runs" / "features").iterdir()) == before


def test_small_weights_of_other_settings_are_refused(whole: tuple[Path, str]) -> None:
    changes = [whole[1], "pretrain.scratch.llm_layers=3"]
    done = launch("stages/st_align.py", changes, ranks=1)
    assert done.returncode == 2
    assert "holds weights made with other pretrain settings" in done.stderr.splitlines()[-1]


class _Attack:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_a_checkpoint_cannot_run_code(whole: tuple[Path, str], tmp_path: Path) -> None:
    folder, recipe = whole
    mark = tmp_path / "code-ran"
    arguments = [recipe, "name=attacked", "encoder_adapt.stop_after=2"]
    succeeded(launch("stages/encoder_adapt.py", arguments, ranks=1))
    checkpoints = folder / "runs" / "attacked" / "encoder_adapt" / "checkpoints"
    (states,) = checkpoints.glob("step-000002/engine/*model_states.pt")
    torch.save({"module": _Attack(f"touch {mark}")}, states)
    done = launch("stages/encoder_adapt.py", arguments, ranks=1)
    assert done.returncode == 2 and "none of the 1 checkpoints" in done.stderr
    # An attacker knows of the sizes and hashes too.
    complete = checkpoints / "step-000002" / "complete.json"
    noted = json.loads(complete.read_text())
    entry = noted["files"][str(states.relative_to(complete.parent))]
    entry |= {"bytes": states.stat().st_size, "sha256": sha256_of(states)}
    complete.write_text(json.dumps(noted))
    done = launch("stages/encoder_adapt.py", arguments, ranks=1)
    assert done.returncode == 2 and "damaged or not ours" in done.stderr
    assert not mark.exists()


@pytest.mark.parametrize(
    ("launcher", "ranks", "code"), [("deepspeed", 2, 2), ("torchrun", 2, 1), ("python", 1, 2)]
)
def test_a_users_mistake_is_one_line_from_one_rank(
    tmp_path: Path, launcher: str, ranks: int, code: int
) -> None:
    recipe = f"recipe={write_recipe(tmp_path)}"
    done = launch("stages/st_align.py", [recipe, "st_align.lrr=1"], ranks=ranks, launcher=launcher)
    assert done.returncode == code
    both = done.stdout + done.stderr
    assert both.count("error: unknown key 'st_align.lrr' (command line); did you mean 'lr'?") == 1
    assert "ConfigError" not in both
