"""Faults of disks and loading processes in the middle of real runs on two ranks.

What can be mended changes no weight and no count, and is shown; what cannot ends all ranks with one
line that names shard and record.
"""

import json
import os
from pathlib import Path

import pytest

from tests.faults.kills import differences
from tests.faults.processes import Launch
from tests.tiny import write_recipe

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]
PHASE = "encoder_adapt"
_SECONDS = 300.0


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with its shards and small weights, many steps long, images decoded in workers."""
    folder = tmp_path_factory.mktemp("data faults")
    changes = {f"{PHASE}__epochs": 15, "data__workers": 1, f"{PHASE}__log_every": 1}
    path = write_recipe(folder, ds_config="zero3", **changes)
    launch = Launch.start("stages/pretrain.py", [f"recipe={path}"], ranks=1)
    assert launch.end(_SECONDS) == 0, launch.output[-3000:]
    return path


def start(recipe: Path, name: str, *changes: str, script: str = "") -> Launch:
    arguments = [f"recipe={recipe}", f"name={name}", "make_missing=false", *changes]
    if script:
        return Launch.start(script, [PHASE, *arguments], ranks=2)
    return Launch.start(f"stages/{PHASE}.py", arguments, ranks=2)


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    launch = start(recipe, "whole")
    assert launch.end(_SECONDS) == 0, launch.output[-3000:]
    summary = summary_of(recipe, "whole")
    assert summary["io_retries"] == summary["worker_restarts"] == 0
    return recipe.parent / "runs" / "whole"


def summary_of(recipe: Path, name: str) -> dict:
    return json.loads((recipe.parent / "runs" / name / PHASE / "summary.json").read_text())


def test_a_disk_that_fails_now_and_then_changes_nothing_and_is_shown(
    recipe: Path, whole: Path
) -> None:
    launch = start(recipe, "flaky", script="tests/faults/broken_disk_program.py")
    assert launch.end(_SECONDS) == 0, launch.output[-3000:]
    assert differences(whole, recipe.parent / "runs" / "flaky", phases=[PHASE]) == []
    assert summary_of(recipe, "flaky")["io_retries"] > 20
    assert "io retries" in launch.output


def test_a_loading_process_that_is_killed_changes_nothing_and_is_shown(
    recipe: Path, whole: Path
) -> None:
    launch = start(recipe, "bereft")
    assert launch.wait_for_line(rf"^{PHASE} +step +3/", _SECONDS)
    assert launch.kill(launch.workers(1))
    assert launch.end(_SECONDS) == 0, launch.output[-3000:]
    assert differences(whole, recipe.parent / "runs" / "bereft", phases=[PHASE]) == []
    assert summary_of(recipe, "bereft")["worker_restarts"] >= 1
    assert "workers restarted" in launch.output


def test_a_shard_that_is_cut_in_the_middle_of_an_epoch_ends_all_ranks_with_one_line(
    recipe: Path, whole: Path
) -> None:
    (shard, *_) = sorted((recipe.parent / "data" / "train").glob("*.tar"))
    content = shard.read_bytes()
    launch = start(recipe, "cut")
    assert launch.wait_for_line(rf"^{PHASE} +step +3/", _SECONDS)
    os.truncate(shard, 600)
    try:
        assert launch.end(_SECONDS) == 2, launch.output[-3000:]
    finally:
        shard.write_bytes(content)
    # A rank that speaks too says the same: it was agreed.
    errors = [line for _, line in launch.lines if line.startswith("error: ")]
    (said,) = {line.removeprefix("error: ").removeprefix("rank 1: ") for line in errors}
    why = "600 bytes, but the manifest says"
    for part in (f"{shard}: record ", why, "5 tries", "(rank ", ", step "):
        assert part in said
    assert "Traceback" not in launch.output
