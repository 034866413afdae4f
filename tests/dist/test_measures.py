"""What can be switched on in training: LoRA, averages of weights, SigLIP, a locked text tower.

The same promises as in `test_training.py`: resume is exact, ranks, micro-batches and ZeRO stages
change nothing; and exports hold what they should.
"""

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.assemble import build_caption_model
from pipeline.config import PHASES, Config
from pipeline.data.loader import Pass
from pipeline.dist import World
from pipeline.errors import CheckpointError, ConfigError
from pipeline.export_files import ExportTensors, read_export
from pipeline.models.encoder import load_clip
from pipeline.models.lora import is_adapter, merge
from pipeline.models.placement import Placement
from pipeline.objectives import LanguageTask
from pipeline.preflight import check
from pipeline.provenance import identity_of_phase
from pipeline.recipe import load_recipe
from pipeline.run import run_phase
from pipeline.splits import caption_dataset, open_split, share_of
from pipeline.validation import language_metrics
from tests.dist.launch import launch, succeeded
from tests.dist.test_training import scalars, summary
from tests.tiny import TIGHT_ZERO3, write_recipe

pytestmark = pytest.mark.dist
WORLD = World(0, 1, 0, 1, torch.device("cpu"))
TUNED = ("encoder_adapt", "llm_tune")
STOPPED = {"encoder_adapt": 2, "llm_tune": 3}  # llm_tune: in its second segment
MEASURES = {
    "encoder_adapt.loss": "siglip",
    "encoder_adapt.text": "locked",
    "encoder_adapt.ema": "0.5",
    "encoder_adapt.merge_alpha": "0.75",
    "llm_tune.ema": "0.5",
    "llm.lora.rank": "2",
    "llm.lora.targets": "[all-linear]",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All measures together: whole and stopped on 2 ranks, whole on 1 rank; some one by one."""
    folder = tmp_path_factory.mktemp("measures")
    tight = folder / "tight.json"
    tight.write_text(json.dumps(TIGHT_ZERO3))
    plain = [f"recipe={write_recipe(folder, ds_config=str(tight))}"]
    recipe = [*plain, *(f"{key}={value}" for key, value in MEASURES.items())]
    two: list[tuple[str, list[str]]] = [("prepare", plain), ("pretrain", plain)]
    for phase in PHASES:
        two.append((phase, [*recipe, "name=whole"]))
    for phase, before in (("encoder_adapt", None), ("llm_tune", "whole/st_align")):
        start = [*recipe, f"{phase}.init_from={_export(folder, before) or 'null'}"]
        stop = f"{phase}.stop_after={STOPPED[phase]}"
        two += [(phase, [*start, "name=stopped", stop]), (phase, [*start, "name=stopped"])]
        two.append((phase, [*start, "name=zero1", f"{phase}.ds_config=zero1"]))
        two.append((phase, [*start, "name=saving", f"{phase}.activation_checkpointing=true"]))
        two.append((phase, [*start, "name=bf16", "precision=bf16"]))
    for alpha in ("0", "1"):
        blend = [f"encoder_adapt.merge_alpha={alpha}", f"name=blend{alpha}"]
        two.append(("encoder_adapt", [*recipe, *blend]))
    two.append(("encoder_adapt", [*plain, "name=free"]))
    free = f"encoder_adapt.init_from={_export(folder, 'free/encoder_adapt')}"
    two.append(("encoder_adapt", [*recipe, free, "name=locked"]))
    tuned = f"llm_tune.init_from={_export(folder, 'whole/llm_tune')}"
    two.append(("llm_tune", [*recipe, tuned, "name=more"]))
    aligned = f"llm_tune.init_from={_export(folder, 'whole/st_align')}"
    drop = [*recipe, aligned, "llm.lora.dropout=0.3"]
    two.append(("llm_tune", [*drop, "name=drop"]))
    two.append(("llm_tune", [*drop, "name=dropstopped", "llm_tune.stop_after=4"]))
    two.append(("llm_tune", [*drop, "name=dropstopped"]))
    micro = [f"{phase}.micro_batch=5" for phase in PHASES]
    one = [(phase, [*recipe, "name=alone", *micro]) for phase in PHASES]
    for ranks, plan in ((2, two), (1, one)):
        path = folder / f"plan{ranks}.json"
        path.write_text(json.dumps(plan))
        output = launch("tests/dist/phases_program.py", [str(path)], ranks=ranks)
        (folder / f"output{ranks}.txt").write_text(succeeded(output))
    return folder / "runs"


def _export(folder: Path, phase: str | None) -> Path | None:
    """The export of `run/phase`."""
    return None if phase is None else folder / "runs" / phase / "export"


def export(runs: Path, name: str, phase: str) -> ExportTensors:
    return ExportTensors(runs / name / phase / "export")


def recipe_of(runs: Path, *changes: str) -> Config:
    measures = [f"{key}={value}" for key, value in MEASURES.items()]
    return load_recipe([f"recipe={runs.parent / 'tiny.yaml'}", "name=whole", *measures, *changes])


def fingerprint(config: Config, phase: str) -> str:
    return identity_of_phase(config, phase, WORLD).fingerprint


@pytest.mark.parametrize("phase", TUNED)
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(runs: Path, phase: str) -> None:
    whole, stopped = (export(runs, name, phase) for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert list((runs / "stopped" / phase / "checkpoints").glob("step-*"))
    first, second = summary(runs / "whole", phase), summary(runs / "stopped", phase)
    assert first["validation"] == second["validation"]


def test_resume_is_exact_with_the_adapters_dropout_too(runs: Path) -> None:
    whole, stopped, plain = (
        export(runs, name, "llm_tune") for name in ("drop", "dropstopped", "whole")
    )
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    adapters = [name for name in whole if is_adapter(name)]
    assert any(not torch.equal(whole[name], plain[name]) for name in adapters)


@pytest.mark.parametrize("phase", TUNED)
@pytest.mark.parametrize("other", ["alone", "zero1", "saving"])
def test_ranks_and_zero_stages_change_no_loss(runs: Path, phase: str, other: str) -> None:
    plain, changed = (scalars(runs / name, phase, "train/loss") for name in ("whole", other))
    assert plain.keys() == changed.keys() and len(plain) >= 4
    for step, loss in plain.items():
        assert abs(changed[step] - loss) <= 1e-5 * abs(loss), (step, changed[step], loss)
    ends = [summary(runs / name, phase)["validation"]["end"] for name in ("whole", other)]
    assert ends[1] == pytest.approx(ends[0], rel=1e-4)


@pytest.mark.parametrize("phase", TUNED)
def test_bf16_trains_and_stays_near_float32(runs: Path, phase: str) -> None:
    single, half = (scalars(runs / name, phase, "train/loss") for name in ("whole", "bf16"))
    for step, loss in single.items():
        assert abs(half[step] - loss) <= 0.05 * abs(loss), (step, half[step], loss)


def test_the_losses_fall(runs: Path) -> None:
    for phase in TUNED:
        losses = scalars(runs / "whole", phase, "train/loss")
        assert losses[max(losses)] < losses[1]


def test_an_export_holds_adapters_and_nothing_of_the_frozen_model(runs: Path) -> None:
    tuned = export(runs, "whole", "llm_tune")
    of_llm = [name for name in tuned if name.startswith("llm.")]
    assert of_llm and all(map(is_adapter, of_llm))
    assert not any(is_adapter(name) for name in export(runs, "whole", "st_align"))
    assert (read_export(runs / "whole" / "llm_tune" / "export") or {})["lora"]["rank"] == 2
    adapters = sum(tuned[name].numel() for name in of_llm)
    # All linear layers of 2 blocks of width 32: 32 -> 96, 32 -> 32, 32 -> 128, 128 -> 32.
    assert adapters == 2 * 2 * (32 + 96 + 32 + 32 + 32 + 128 + 128 + 32)
    mapper = sum(tuned[name].numel() for name in tuned if name.startswith("st."))
    assert summary(runs / "whole", "llm_tune")["trained_parameters"] == adapters + mapper


def test_a_checkpoint_is_as_large_as_what_trains(runs: Path) -> None:
    newest = max((runs / "stopped" / "llm_tune" / "checkpoints").glob("step-*"))
    size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    trained = summary(runs / "stopped", "llm_tune")["trained_parameters"]
    # float32 weights, two moments, the average; and what DeepSpeed writes about every parameter.
    assert size < 16 * trained + 2 * 120_000, (size, trained)


def test_the_last_validation_measures_the_export(runs: Path) -> None:
    """Loaded anew without DeepSpeed, with adapters beside the weights or folded into them."""
    config = recipe_of(runs)
    split = open_split(config, "val")
    tensors = export(runs, "whole", "llm_tune")
    built = build_caption_model(
        config, tensors, {"val": split}, dtype=torch.float32, placement=Placement(), world=WORLD
    )
    plan = split.in_order(5, None)
    dataset = caption_dataset(
        config,
        split,
        plan,
        built.images["val"],
        built.tokenizer,
        share_of(WORLD, 5),
        captions="all",
    )
    task = LanguageTask(built.model).eval()
    told = summary(runs / "whole", "llm_tune")
    assert told["exported"] == "the average over steps (ema=0.5)"
    for _ in range(2):
        found = language_metrics(task, Pass(dataset, workers=0)(), WORLD, torch.float32)
        assert found["loss"] == pytest.approx(told["validation"]["end"]["loss"], rel=1e-5)
        merge(built.model)
    assert not any(is_adapter(name) for name, _ in built.model.named_parameters())


def test_a_locked_text_tower_stays_and_its_temperature_trains(runs: Path) -> None:
    adapted = export(runs, "blend1", "encoder_adapt")
    assert [name for name in adapted if not name.startswith("encoder.")] == ["text.logit_scale"]
    assert float(adapted["text.logit_scale"]) != pytest.approx(torch.tensor(10.0).log().item())
    assert summary(runs / "blend1", "encoder_adapt")["trained_parameters"] == 1 + sum(
        adapted[name].numel() for name in adapted
    )  # and the bias


def test_a_locked_text_tower_that_was_taken_over_is_handed_on(runs: Path) -> None:
    free, locked = (export(runs, name, "encoder_adapt") for name in ("free", "locked"))
    assert free.keys() == locked.keys()
    towers = [name for name in free if name.startswith("text.") and "logit" not in name]
    assert towers and all(torch.equal(free[name], locked[name]) for name in towers)


def test_tuning_goes_on_from_adapters(runs: Path) -> None:
    before = summary(runs / "whole", "llm_tune")["validation"]["end"]
    after = summary(runs / "more", "llm_tune")["validation"]
    assert after["start"]["loss"] == pytest.approx(before["loss"], rel=1e-5)
    assert after["end"]["loss"] < after["start"]["loss"]


def test_adapters_belong_to_what_tuning_learns_and_to_nothing_before(runs: Path) -> None:
    prints = {
        change: [fingerprint(recipe_of(runs, *change), name) for name in PHASES]
        for change in ((), ("llm.lora.rank=3",), ("llm.lora.alpha=4",), ("llm_tune.ema=0",))
    }
    made = [(read_export(runs / "whole" / n / "export") or {})["fingerprint"] for n in PHASES]
    assert prints[()] == made
    for change, found in prints.items():
        assert found[:2] == made[:2]
        assert (found[2] == made[2]) == (change == ())
    for change in ("loss=infonce", "text=train", "ema=0", "merge_alpha=1"):
        config = recipe_of(runs, f"encoder_adapt.{change}")
        assert fingerprint(config, "encoder_adapt") != made[0]


def test_wrong_targets_are_found_before_anything_is_trained(runs: Path) -> None:
    check(recipe_of(runs), WORLD, until="llm_tune")
    with pytest.raises(ConfigError, match=r"no linear layer q_proj; name some of c_attn, c_fc"):
        check(recipe_of(runs, "llm.lora.targets=[q_proj]"), WORLD, until="llm_tune")


def test_tensorboard_shows_each_rate_once(runs: Path) -> None:
    board = EventAccumulator(str(runs / "whole" / "llm_tune" / "tensorboard"))
    board.Reload()
    rates = [tag for tag in board.Tags()["scalars"] if tag.startswith("llm_tune/lr/")]
    assert sorted(rates) == ["llm_tune/lr/llm", "llm_tune/lr/st"]


def test_the_blend_is_exact_at_both_ends_and_linear_between(runs: Path) -> None:
    config = recipe_of(runs)
    clip = load_clip(config.encoder, seed=config.seed).model
    original = {name: each.detach() for name, each in clip.named_parameters()}
    zero, one, between = (
        export(runs, name, "encoder_adapt") for name in ("blend0", "blend1", "whole")
    )
    changed = 0
    for name in zero:
        before = original[name.partition(".")[2]]
        assert torch.equal(zero[name], before), name
        expected = before + 0.75 * (one[name] - before)
        torch.testing.assert_close(between[name], expected, rtol=0, atol=1e-6)
        changed += not torch.equal(one[name], before)
    assert changed > len(zero) / 2
    told = summary(runs / "whole", "encoder_adapt")["exported"]
    assert told == "the average over steps (ema=0.5), blended with the original (merge_alpha=0.75)"


@pytest.mark.parametrize("change", ["llm.lora.rank=0", "llm.lora.rank=4", "llm.lora.alpha=2"])
def test_an_export_of_other_adapters_is_refused_in_one_line(runs: Path, change: str) -> None:
    start = runs / "whole" / "llm_tune" / "export"
    config = recipe_of(runs, change, f"llm_tune.init_from={start}", "name=other")
    with pytest.raises(CheckpointError) as caught:
        run_phase(config, "llm_tune", WORLD)
    assert "holds adapters with llm.lora.rank=2 and llm.lora.alpha=16" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_zero_stage_averages_as_one_would_by_hand(tmp_path: Path) -> None:
    succeeded(launch("tests/dist/average_program.py", [str(tmp_path)], ranks=2))
    for stage in range(4):
        for precision in ("fp32", "bf16"):
            found = json.loads((tmp_path / f"{stage}-{precision}.json").read_text())
            assert found["apart"] <= 1e-6, (stage, precision, found)
            assert found["moved"] > 1e-3, (stage, precision, found)
            assert found["resumed"] == 1.0, (stage, precision, found)
            assert found["forward"] <= 1e-6, (stage, precision, found)
            assert found["skipped"] == 1.0, (stage, precision, found)
