"""What is done with what a phase's folder holds already."""

from pathlib import Path

import pytest
import torch

from pipeline.checkpoint_files import STATE
from pipeline.config import Config
from pipeline.errors import CheckpointError
from pipeline.explain.standing import ALONE
from pipeline.export_files import save_export
from pipeline.identity import Identity
from pipeline.progress import Progress
from pipeline.provenance import identity_of_phase
from pipeline.recipe import load_recipe
from pipeline.run import refuse_outdated, run_phase, what_lies_in
from tests.small import build
from tests.stored import put_checkpoint
from tests.test_export_files import flip_last_bit

OURS = Identity({"llm_tune.lr": 2e-4}, Identity({"seed": 0}))
THEIRS = Identity({"llm_tune.lr": 1e-4}, Identity({"seed": 0}))
DIFFERENCE = "llm_tune.lr: 0.0001 then, 0.0002 now"


def put_export(folder: Path, identity: Identity) -> None:
    details = {"fingerprint": identity.fingerprint, "identity": identity.as_json()}
    save_export(folder, {"st.a": torch.ones(1)}, Progress(), details, Config())


@pytest.mark.parametrize(
    ("exports", "finished", "different"),
    [
        ({}, False, []),
        ({"export": OURS}, True, []),
        ({"export": THEIRS}, False, [DIFFERENCE]),
        ({"segment-0": OURS}, False, []),  # stopped between two segments
        ({"segment-0": THEIRS}, False, [DIFFERENCE]),
        ({"segment-0": OURS, "export": OURS}, True, []),
    ],
)
def test_what_another_recipe_has_left_is_never_taken_for_nothing(
    exports: dict[str, Identity], finished: bool, different: list[str], tmp_path: Path
) -> None:
    for name, identity in exports.items():
        put_export(tmp_path / name, identity)
    assert what_lies_in(tmp_path, OURS) == (finished, different)


def test_the_newest_checkpoint_says_what_is_gone_on_from(tmp_path: Path) -> None:
    put_checkpoint(tmp_path / "checkpoints", 10, identity=THEIRS.as_json())
    assert what_lies_in(tmp_path, OURS) == (False, [DIFFERENCE])
    assert what_lies_in(tmp_path, OURS, with_changes=True) == (False, [])
    put_checkpoint(tmp_path / "checkpoints", 20, identity=OURS.as_json())  # gone on with knowingly
    assert what_lies_in(tmp_path, OURS) == (False, [])


@pytest.mark.parametrize("damage", [b"{", b'{"identity": {"fingerprint": "f"}, "progress": {}}'])
def test_a_newest_state_that_is_not_what_was_written_tells_nothing(
    damage: bytes, tmp_path: Path
) -> None:
    put_checkpoint(tmp_path / "checkpoints", 10, identity=OURS.as_json())
    state = put_checkpoint(tmp_path / "checkpoints", 20, identity=OURS.as_json()) / STATE
    state.write_bytes(damage.ljust(state.stat().st_size))
    assert what_lies_in(tmp_path, OURS) == (False, [])


def test_changes_are_for_what_is_half_way_not_for_what_is_finished(tmp_path: Path) -> None:
    put_export(tmp_path / "segment-0", THEIRS)
    with pytest.raises(CheckpointError, match="resume_with_changes=true to go on") as caught:
        refuse_outdated(tmp_path, Config(), [DIFFERENCE])
    assert DIFFERENCE in str(caught.value) and "\n" not in str(caught.value)
    put_export(tmp_path / "export", THEIRS)
    assert what_lies_in(tmp_path, OURS, with_changes=True) == (False, [DIFFERENCE])
    with pytest.raises(CheckpointError) as caught:
        refuse_outdated(tmp_path, Config(), [DIFFERENCE])
    assert "resume_with_changes" not in str(caught.value)
    refuse_outdated(tmp_path, Config(overwrite=True), [DIFFERENCE])


@pytest.mark.parametrize("taken_over", ["start", "segment-0"])
def test_no_phase_goes_on_from_damaged_weights(taken_over: str, tmp_path: Path) -> None:
    start = tmp_path / "start"
    put_export(start, OURS)
    recipe = f"recipe={build(tmp_path)}"
    config = load_recipe([recipe, f"llm_tune.init_from={start}", "name=run"])
    segment = tmp_path / "runs" / "run" / "llm_tune" / "segment-0"
    put_export(segment, identity_of_phase(config, "llm_tune", ALONE))
    flip_last_bit(start if taken_over == "start" else segment)
    with pytest.raises(CheckpointError, match=f"{taken_over}/weights.*is not what was written"):
        run_phase(config, "llm_tune", ALONE)
