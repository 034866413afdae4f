"""Whether a run may go on from a checkpoint, and what it is told where it may not."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.checkpoint_state import state_of
from pipeline.dist import World
from pipeline.durable import write_json
from pipeline.errors import CheckpointError
from pipeline.identity import Identity
from pipeline.progress import Progress
from pipeline.resume import check_checkpoint, load_checkpoint

LAYOUT = "ZeRO-3, fp32"
THEN = Identity({"llm_tune.lr": 1e-4, "data": "manifest a of 9 records"}, Identity({"seed": 0}))
NOW = Identity({"llm_tune.lr": 2e-4, "data": "manifest b of 8 records"}, Identity({"seed": 0}))


def engine(*, parameters: int = 5, layout: str = LAYOUT) -> Any:
    world = World(0, 1, 0, 1, torch.device("cpu"))
    trains = {"parameters": parameters, "groups": 1, "hash": f"of {parameters}"}
    return SimpleNamespace(layout=layout, world=world, trains=trains, stage=3)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "step-000400"
    path.mkdir()
    write_json(path / "state.json", state_of(engine(), Progress(step=400), THEN))
    return path


def test_the_same_recipe_goes_on_without_a_word(checkpoint: Path) -> None:
    assert check_checkpoint(checkpoint, THEN, LAYOUT) == Progress(step=400)


def test_another_recipe_is_refused_with_what_differs_and_the_switch(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_checkpoint(checkpoint, NOW, LAYOUT)
    line = str(caught.value)
    assert "llm_tune.lr: 0.0001 then, 0.0002 now" in line
    assert "data: manifest a of 9 records then, manifest b of 8 records now" in line
    assert "resume_with_changes=true" in line and "\n" not in line


def test_changes_that_are_allowed_are_noted(checkpoint: Path) -> None:
    progress = check_checkpoint(checkpoint, NOW, LAYOUT, with_changes=True)
    assert progress.changes == [
        "step 400: data: manifest a of 9 records then, manifest b of 8 records now",
        "step 400: llm_tune.lr: 0.0001 then, 0.0002 now",
    ]


def test_what_does_not_fit_is_refused_whatever_is_allowed(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit: .*\(5\) than in this run \(6\)"):
        load_checkpoint(checkpoint, engine(parameters=6), NOW, with_changes=True)
    with pytest.raises(CheckpointError, match="written under ZeRO-3, fp32, this run uses ZeRO-1"):
        check_checkpoint(checkpoint, NOW, "ZeRO-1, fp32", with_changes=True)


def test_a_checkpoint_from_before_identities_is_refused_by_name(checkpoint: Path) -> None:
    state = {**state_of(engine(), Progress(), THEN), "identity": None, "fingerprint": "0123"}
    write_json(checkpoint / "state.json", state)
    with pytest.raises(
        CheckpointError, match=r"the recipe \(its values are not known\): 0123 then"
    ):
        check_checkpoint(checkpoint, NOW, LAYOUT)
