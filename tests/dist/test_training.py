"""What training promises: resume is exact, ranks and micro-batches change nothing but speed.

Under ZeRO-3 settings that really partition the small models of the tests.
"""

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from pipeline.config import PHASES
from pipeline.conversion import convert
from pipeline.export_files import ExportTensors
from pipeline.recipe import load_recipe
from tests.dist.launch import launch, succeeded
from tests.tiny import TIGHT_ZERO3, write_recipe

pytestmark = pytest.mark.dist
STOPPED = {"encoder_adapt": 2, "st_align": 1, "llm_tune": 3}  # llm_tune: in its second segment


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All phases: whole and stopped on 2 ranks, whole on 1 rank with other micro-batches."""
    folder = tmp_path_factory.mktemp("training")
    tight = folder / "tight.json"
    tight.write_text(json.dumps(TIGHT_ZERO3))
    recipe = f"recipe={write_recipe(folder, ds_config=str(tight))}"
    two: list[tuple[str, list[str]]] = [("prepare", [recipe]), ("pretrain", [recipe])]
    for phase in PHASES:
        two.append((phase, [recipe, "name=whole"]))
        stop = f"{phase}.stop_after={STOPPED[phase]}"
        two.append((phase, [recipe, "name=stopped", stop]))
        two.append((phase, [recipe, "name=stopped"]))
        two.append((phase, [recipe, "name=zero1", f"{phase}.ds_config=zero1"]))
        two.append((phase, [recipe, "name=saving", f"{phase}.activation_checkpointing=true"]))
        two.append((phase, [recipe, "name=bf16", "precision=bf16"]))
    tuned = f"llm_tune.init_from={folder / 'runs' / 'whole' / 'st_align' / 'export'}"
    drop = [recipe, tuned, "llm.dropout=0.2"]
    two.append(("llm_tune", [*drop, "name=drop"]))
    two.append(("llm_tune", [*drop, "name=dropstopped", "llm_tune.stop_after=3"]))
    two.append(("llm_tune", [*drop, "name=dropstopped"]))
    micro = [f"{phase}.micro_batch=5" for phase in PHASES]
    one = [(phase, [recipe, "name=alone", *micro]) for phase in PHASES]
    for ranks, plan in ((2, two), (1, one)):
        path = folder / f"plan{ranks}.json"
        path.write_text(json.dumps(plan))
        output = launch("tests/dist/phases_program.py", [str(path)], ranks=ranks)
        (folder / f"output{ranks}.txt").write_text(succeeded(output))
    return folder / "runs"


def scalars(run: Path, phase: str, tag: str) -> dict[int, float]:
    board = EventAccumulator(str(run / phase / "tensorboard"))
    board.Reload()
    return {event.step: event.value for event in board.Scalars(f"{phase}/{tag}")}


def summary(run: Path, phase: str) -> dict:
    return json.loads((run / phase / "summary.json").read_text())


@pytest.mark.parametrize("phase", PHASES)
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(runs: Path, phase: str) -> None:
    whole, stopped = (ExportTensors(runs / n / phase / "export") for n in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert list((runs / "stopped" / phase / "checkpoints").glob("step-*"))
    counts = ("steps", "records_seen", "records_skipped", "validation", "train_loss_end")
    first, second = summary(runs / "whole", phase), summary(runs / "stopped", phase)
    assert {key: first[key] for key in counts} == {key: second[key] for key in counts}
    assert scalars(runs / "whole", phase, "train/loss") == scalars(
        runs / "stopped", phase, "train/loss"
    )


def test_resume_is_exact_with_dropout_too(runs: Path) -> None:
    whole, stopped, plain = (
        ExportTensors(runs / name / "llm_tune" / "export")
        for name in ("drop", "dropstopped", "whole")
    )
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert any(not torch.equal(whole[name], plain[name]) for name in whole)


def test_a_frozen_llm_drops_nothing(runs: Path) -> None:
    first_segment = 2  # steps in which the ST alone trains
    drop, plain = (scalars(runs / name, "llm_tune", "train/loss") for name in ("drop", "whole"))
    for step in range(1, first_segment + 1):
        assert drop[step] == plain[step]
    assert drop[first_segment + 1] != plain[first_segment + 1]


@pytest.mark.parametrize("phase", PHASES)
def test_one_and_two_ranks_agree_in_every_loss(runs: Path, phase: str) -> None:
    two, one = (scalars(runs / name, phase, "train/loss") for name in ("whole", "alone"))
    assert two.keys() == one.keys() and len(one) >= 4
    for step, loss in one.items():
        assert abs(two[step] - loss) <= 1e-5 * abs(loss), (step, two[step], loss)


@pytest.mark.parametrize("other", ["zero1", "saving"])
@pytest.mark.parametrize("phase", PHASES)
def test_zero_stage_and_activation_checkpointing_change_no_loss(
    runs: Path, phase: str, other: str
) -> None:
    plain, changed = (scalars(runs / name, phase, "train/loss") for name in ("whole", other))
    assert plain.keys() == changed.keys()
    for step, loss in plain.items():
        assert abs(changed[step] - loss) <= 1e-5 * abs(loss), (step, changed[step], loss)


@pytest.mark.parametrize("phase", PHASES)
def test_bf16_trains_and_stays_near_float32(runs: Path, phase: str) -> None:
    single, half = (scalars(runs / name, phase, "train/loss") for name in ("whole", "bf16"))
    assert single.keys() == half.keys()
    for step, loss in single.items():
        assert abs(half[step] - loss) <= 0.05 * abs(loss), (step, half[step], loss)
    assert summary(runs / "bf16", phase)["steps_skipped"] == 0


def test_each_phase_trains_its_parts_and_hands_all_of_them_over(runs: Path) -> None:
    exports = {phase: ExportTensors(runs / "whole" / phase / "export") for phase in PHASES}
    parts = {
        phase: {name.partition(".")[0] for name in tensors} for phase, tensors in exports.items()
    }
    assert parts["encoder_adapt"] == {"encoder", "text"}
    assert parts["st_align"] == {"encoder", "st"}
    assert parts["llm_tune"] == {"encoder", "st", "llm"}
    adapted, tuned = exports["encoder_adapt"], exports["llm_tune"]
    towers = [name for name in tuned if name.startswith("encoder.")]
    assert towers and all(torch.equal(adapted[name], tuned[name]) for name in towers)
    mapper = [name for name in tuned if name.startswith("st.")]
    assert any(not torch.equal(exports["st_align"][n], tuned[n]) for n in mapper)


def test_the_contrastive_loss_falls_and_so_does_the_language_loss(runs: Path) -> None:
    for phase in PHASES:
        validation = summary(runs / "whole", phase)["validation"]
        assert validation["start"].keys() == validation["end"].keys()
    aligned = summary(runs / "whole", "st_align")["validation"]
    assert aligned["end"]["loss"] < aligned["start"]["loss"]
    tuned = summary(runs / "whole", "llm_tune")["validation"]
    assert tuned["start"]["loss"] == pytest.approx(aligned["end"]["loss"], rel=1e-5)
    assert tuned["end"]["loss"] < tuned["start"]["loss"]


def test_tensorboard_shows_what_the_readme_says(runs: Path) -> None:
    board = EventAccumulator(str(runs / "whole" / "llm_tune" / "tensorboard"))
    board.Reload()
    expected = {
        "train/loss",
        "train/grad_norm",
        "train/steps_skipped",
        "lr/st",
        "lr/llm",
        "speed/samples_per_second",
        "speed/target_tokens_per_second",
        "data/wait_fraction",
        "data/padding_fraction",
        "data/records_skipped",
        "memory/process_peak_gib",
        "val/loss",
        "val/perplexity",
        "val/cider",
    }
    assert {f"llm_tune/{each}" for each in expected} <= set(board.Tags()["scalars"])
    assert "llm_tune/val/samples" in board.Tags()["images"]
    assert "llm_tune/recipe/text_summary" in board.Tags()["tensors"]
    (image,) = board.Images("llm_tune/val/samples")[-1:]
    assert image.width > 300 and image.height > 200
    assert [event.step for event in board.Scalars("llm_tune/train/loss")] == [1, 2, 3, 4, 5, 6]


def test_the_terminal_shows_one_line_a_step_and_a_summary(runs: Path) -> None:
    output = (runs.parent / "output1.txt").read_text()
    line = next(
        each for each in output.splitlines() if each.startswith("st_align") and "eta" in each
    )
    for part in ("step 1/4", "loss", "samples/s", "tokens/s", "data wait"):
        assert part in line
    assert "summary.json; TensorBoard:" in output


def test_exports_of_every_zero_stage_leave_for_transformers(runs: Path, tmp_path: Path) -> None:
    found = []
    for name in ("whole", "zero1"):
        export = runs / name / "llm_tune" / "export"
        config = load_recipe([f"recipe={export / 'config.yaml'}"])
        convert(config, export, tmp_path / name)
        found.append(AutoModelForCausalLM.from_pretrained(tmp_path / name / "llm").state_dict())
        tuned = ExportTensors(export)
        assert all(torch.equal(found[-1][n[4:]], tuned[n]) for n in tuned if n.startswith("llm."))
        card = (tmp_path / name / "README.md").read_text()
        assert "* data: 40 records, fingerprint " in card
    three, one = found
    assert three.keys() == one.keys()
    for name, value in three.items():
        torch.testing.assert_close(one[name], value, atol=1e-4, rtol=1e-3)
