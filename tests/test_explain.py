"""Plans: what they count is what training builds, and they leave the disk as it was."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config import Config, EncoderAdaptConfig
from pipeline.ds_config import read_ds_config
from pipeline.engine import layout_of
from pipeline.explain.activations import kept_bytes, language_activations
from pipeline.explain.budget import need
from pipeline.explain.data import training_outlook
from pipeline.explain.parts import census
from pipeline.explain.resolved import resolved_recipe
from pipeline.explain.sketches import with_sketches
from pipeline.explain.stages import explain_evaluate, explain_phase
from pipeline.explain.standing import ALONE, FINISHED, OFF, REFUSED, RESUMES, STARTS, standing
from pipeline.export_files import save_export
from pipeline.models.clipcap import ClipCap, parts
from pipeline.models.encoder import load_clip, load_image_encoder
from pipeline.models.llm import load_llm
from pipeline.models.placement import Placement
from pipeline.models.st import build_st
from pipeline.phases import Segment, encoder_groups, part_groups, segments
from pipeline.progress import Progress
from pipeline.provenance import identity_of_phase
from pipeline.recipe import load_recipe
from tests.helpers import REPOSITORY, require_shared
from tests.models.tiny import gpt2, multimodal
from tests.small import build
from tests.stored import put_checkpoint
from tests.tiny import write_recipe

STAGES = ("prepare", "pretrain", "encoder_adapt", "st_align", "llm_tune", "evaluate", "report")


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A recipe whose shards and weights are there; nothing is trained."""
    return load_recipe([f"recipe={build(tmp_path_factory.mktemp('explain'))}"])


def snapshot(folder: Path) -> dict[str, int]:
    return {str(each): each.stat().st_mtime_ns for each in folder.rglob("*")}


def run_stage(name: str, arguments: list[str], monkeypatch, capsys) -> str:
    """A stage as its own program would run, in this process."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    try:
        runpy.run_path(str(REPOSITORY / "stages" / f"{name}.py"), run_name="__main__")
    except SystemExit as left:
        assert left.code in (None, 0)
    return capsys.readouterr().out


def one_of(config: Config, name: str) -> Segment:
    return segments(config, name, 4)[-1]


# What is counted.


@pytest.mark.parametrize("train", ["all", "last:1"])
def test_the_towers_are_counted_as_they_are_built(there: Config, train: str) -> None:
    phase = replace(there.encoder_adapt, train=train)
    config = replace(there, encoder_adapt=phase)
    counted = census(
        config,
        "encoder_adapt",
        one_of(replace(config, encoder_adapt=phase), "encoder_adapt"),
        precision="fp32",
        captions=5,
        ranks=1,
    )
    clip = load_clip(config.encoder).model
    encoder_groups(clip, phase)
    trained = sum(each.numel() for each in clip.parameters() if each.requires_grad)
    assert counted.parameters.trained == trained
    assert counted.parameters.all == sum(each.numel() for each in clip.parameters())
    visual = sum(each.numel() for each in clip.visual.parameters())
    assert counted.parts["encoder"].total == visual
    assert (counted.parts["encoder"].trained < visual) == (train != "all")


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_the_caption_model_is_counted_as_it_is_built(
    there: Config, kind: str, cached: bool
) -> None:
    config = replace(
        there,
        st=replace(there.st, kind=kind, num_heads=4),
        data=replace(there.data, cache_features=cached),
    )
    encoder, _ = load_image_encoder(config.encoder)
    encoder.requires_grad_(False)
    llm = load_llm(config.llm, dtype=torch.float32, placement=Placement(), seed=0)
    width = llm.config.hidden_size
    st = build_st(config.st, width=encoder.width, llm_width=width)
    model = ClipCap(None if cached else encoder, st, llm)
    for segment in segments(config, "llm_tune", 4):
        counted = census(config, "llm_tune", segment, precision="fp32", captions=5, ranks=1)
        part_groups(parts(model), segment, config.llm_tune)
        trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
        assert counted.parameters.trained == trained
        assert counted.parameters.all == sum(each.numel() for each in model.parameters())
        assert counted.parts["encoder"].held is not cached
        assert set(counted.rates) == set(segment.train)


def test_activations_on_the_meta_device_are_those_of_a_real_forward_pass() -> None:
    real = multimodal(gpt2())
    with torch.device("meta"):
        sketched = multimodal(gpt2())
    features = torch.randn(3, 6)
    body, logits = language_activations(
        sketched, rows=3, prefix=3, tokens=5, features=features.to("meta")
    )

    def forward() -> torch.Tensor:
        embeds = torch.cat(
            [real.st(features), real.llm.get_input_embeddings()(torch.ones(3, 5).long())], 1
        )
        return real.llm.transformer(inputs_embeds=embeds, use_cache=False).last_hidden_state

    assert body == pytest.approx(kept_bytes(real, forward), rel=0.1)
    assert logits >= 3 * 5 * 37 * 4 * 2  # the logits and their gradient


def test_a_frozen_model_keeps_less_and_recomputation_less_still() -> None:
    def body(*, frozen: bool, recompute: bool = False) -> int:
        with torch.device("meta"):
            model, features = multimodal(gpt2(n_layer=8)), torch.empty(2, 6)
        model.llm.requires_grad_(not frozen)
        return language_activations(
            model, rows=2, prefix=3, tokens=5, features=features, recompute=recompute
        )[0]

    whole = body(frozen=False)
    assert body(frozen=True) < whole
    assert body(frozen=False, recompute=True) < whole / 2


def test_small_weights_that_are_still_to_be_made_are_counted(tmp_path: Path) -> None:
    config = load_recipe([f"recipe={write_recipe(tmp_path)}"])
    with with_sketches(config) as sketched:
        counted = census(
            sketched,
            "llm_tune",
            one_of(config, "llm_tune"),
            precision="fp32",
            captions=5,
            ranks=1,
        )
    assert counted.parameters.trained > 0
    assert not (tmp_path / "weights").exists()


def test_adapters_and_averages_are_in_the_plan(there: Config) -> None:
    llm = replace(there.llm, lora=replace(there.llm.lora, rank=2))
    config = replace(there, llm=llm)
    segment = one_of(there, "llm_tune")
    plain, adapted = (
        census(each, "llm_tune", segment, precision="fp32", captions=None, ranks=1)
        for each in (there, config)
    )
    assert adapted.parts["llm"].trained < 0.1 * plain.parts["llm"].trained
    assert adapted.parts["llm"].total > plain.parts["llm"].total
    assert adapted.parts["st"] == plain.parts["st"]
    loaded = read_ds_config("test", "zero3")
    averaged = replace(there.llm_tune, ema=0.99)
    without, beside = (
        need(plain, phase, loaded, precision="fp32", ranks=1).states.optimizer
        for phase in (there.llm_tune, averaged)
    )
    assert beside == pytest.approx(without * 16 / 12)


# Where a phase stands.


def phase_standing(config: Config, name: str = "encoder_adapt", ranks: int = 1):
    stretches = segments(config, name, 4)
    return standing(config, name, stretches, precision="fp32", ranks=ranks)


def test_a_phase_starts_resumes_is_finished_or_refused(there: Config, tmp_path: Path) -> None:
    config = replace(there, runs=str(tmp_path / "runs"), name="states")
    folder = Path(config.runs) / config.name / "encoder_adapt"
    assert phase_standing(config).state == STARTS
    identity = identity_of_phase(config, "encoder_adapt", ALONE, remember=False)
    fingerprint = identity.fingerprint
    layout = layout_of(read_ds_config("test", config.encoder_adapt.ds_config), "fp32")
    state = {"identity": identity.as_json(), "ranks": 1, "layout": layout}
    put_checkpoint(folder / "checkpoints", 2, **state)
    resumed = phase_standing(config)
    assert resumed.state == RESUMES and "at step 2 from" in resumed.detail
    assert "rewritten from 1 to 2 rank(s)" in phase_standing(config, ranks=2).detail
    other = replace(config, encoder_adapt=replace(config.encoder_adapt, lr=0.5))
    refused = phase_standing(other)
    assert refused.state == REFUSED
    assert "encoder_adapt.lr: 0.001 then, 0.5 now" in refused.detail
    knowingly = phase_standing(replace(other, resume_with_changes=True))
    assert knowingly.state == RESUMES and "lr: 0.001 then, 0.5 now" in knowingly.detail
    again = phase_standing(replace(other, overwrite=True))
    assert again.state == STARTS and "would be removed" in again.detail
    details = {"fingerprint": fingerprint, "phase": "encoder_adapt"}
    save_export(folder / "export", {"encoder.x": torch.ones(1)}, Progress(), details, config)
    assert phase_standing(config).state == FINISHED
    off = replace(config, encoder_adapt=replace(config.encoder_adapt, enabled=False))
    assert phase_standing(off).state == OFF


def test_a_predecessor_that_is_not_finished_refuses_unless_it_is_made_first(there: Config) -> None:
    refused = phase_standing(there, "st_align")
    assert refused.state == REFUSED and "run stages/encoder_adapt.py first" in refused.detail
    assert not (Path(there.runs) / ".hashes.json").exists()  # asked without a trace
    made = phase_standing(replace(there, make_missing=True), "st_align")
    assert made.state == STARTS and made.detail == "from encoder_adapt"


# What it says.


def test_a_plan_has_the_numbers_of_the_run(there: Config) -> None:
    text = explain_phase(there, replace(ALONE, size=3, local_size=3), "llm_tune")
    # 40 records in batches of 12: 4 steps an epoch, half an epoch and one.
    assert "6, an epoch has 4" in text
    assert "[0] st: 0 to 2" in text and "[1] st + llm: 2 to 6" in text
    assert "12 records over 3 ranks: 1 micro-batch of up to 4 on each" in text
    assert "60 seen: 1.5 x 40, all captions of each (5.0)" in text
    assert "[1] st 0.002, llm 0.001" in text
    assert "ZeRO-3, 3 ranks, fp32" in text
    assert "2 steps of warm-up" in text


def test_what_a_stage_would_not_make_itself_is_said(there: Config) -> None:
    text = explain_phase(there, ALONE, "llm_tune")
    assert "encoder_adapt     not run yet" in text
    assert "llm_tune          refused: llm_tune starts from st_align" in text
    assert "refused: llm_tune is not finished; run stages/encoder_adapt.py" in explain_evaluate(
        there, ALONE
    )
    made = explain_evaluate(replace(there, make_missing=True), ALONE)
    assert "refused" not in made and "llm_tune          starts: from st_align" in made


def test_a_plan_says_where_zero3_pays_for_nothing(there: Config) -> None:
    world = replace(ALONE, size=8, local_size=8)
    text = explain_phase(there, world, "st_align")
    assert "ZeRO-3 pays for nothing here" in text and "st_align.ds_config=zero2" in text
    second = replace(there, st_align=replace(there.st_align, ds_config="zero2"))
    assert "pays for nothing" not in explain_phase(second, world, "st_align")
    assert "pays for nothing" not in explain_phase(there, ALONE, "st_align")


def test_the_resolved_recipe_shows_what_differs_from_the_defaults() -> None:
    config = Config(recipe="x", encoder_adapt=EncoderAdaptConfig(lr=0.25))
    text = resolved_recipe(replace(config, plan=True))
    assert text.splitlines()[1:] == ["  recipe: x", "  encoder_adapt: {lr: 0.25}"]


def test_a_plan_fits_on_a_screen_and_is_narrow(there: Config) -> None:
    text = explain_phase(there, ALONE, "llm_tune").partition("The recipe, as resolved")[0]
    lines = text.splitlines()
    assert len(lines) <= 60
    assert max(len(line) for line in lines if str(Path(there.runs).parent) not in line) <= 110


# What it touches.


@pytest.mark.parametrize("stage", STAGES)
def test_no_plan_touches_the_disk_where_nothing_is_there(
    tmp_path: Path, monkeypatch, capsys, stage: str
) -> None:
    recipe = write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    text = run_stage(stage, [f"recipe={recipe}", "--plan"], monkeypatch, capsys)
    assert f"Plan of stages/{stage}.py" in text
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("stage", STAGES)
def test_no_plan_touches_the_disk_where_all_is_there(
    there: Config, monkeypatch, capsys, stage: str
) -> None:
    folder = Path(there.runs).parent
    before = snapshot(folder)
    arguments = [f"recipe={folder / 'tiny.yaml'}", "plan=true", "plan_ranks=4"]
    text = run_stage(stage, arguments, monkeypatch, capsys)
    assert f"Plan of stages/{stage}.py" in text
    assert snapshot(folder) == before


def test_a_recipe_whose_weights_are_nowhere_is_still_explained(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["recipe=clipcap_coco", "--plan", "plan_ranks=8", "llm.path=./gpt2"]
    text = run_stage("llm_tune", arguments, monkeypatch, capsys)
    assert "not there: data/coco/shards/train" in text
    assert "there is no folder ./gpt2" in text
    assert "? (depends on the number of records)" in text
    assert "87.8 M *" in text  # ViT-B/32 is known without its weights
    assert not list(tmp_path.iterdir())


def test_preparing_is_explained_with_its_counts(tmp_path: Path, monkeypatch, capsys) -> None:
    out = f"out={tmp_path / 'shards'}"
    text = run_stage("prepare", ["source=scenes", out, "--plan"], monkeypatch, capsys)
    assert "2,000 records (5.0 captions each) into 2 shards" in text
    assert not (tmp_path / "shards").exists()
    counts = "counts={train: 20}"
    run_stage("prepare", ["source=scenes", out, counts], monkeypatch, capsys)
    text = run_stage("prepare", ["source=scenes", out, counts, "--plan"], monkeypatch, capsys)
    assert "finished: 20 records in 1 shard" in text


@pytest.mark.parametrize(
    ("stage", "key"), [("caption", "out=x"), ("export", "out=x"), ("chat", "checkpoint=x")]
)
def test_stages_without_a_phase_have_a_plan_too(
    tmp_path: Path, monkeypatch, capsys, stage: str, key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = run_stage(stage, ["recipe=quickstart", "--plan", key], monkeypatch, capsys)
    assert f"Plan of stages/{stage}.py. Nothing is written." in text and "x" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.shared
def test_a_mixture_that_is_still_to_be_prepared_is_planned(tmp_path: Path) -> None:
    require_shared("data", "instruct")
    config = load_recipe(["recipe=lavin_chat_small", f"paths.shards={tmp_path / 'chat'}"])
    found = training_outlook(config)
    assert not found.there and found.records == 383 + 964 + 4 * 6
    assert "mixed of coco, alpaca, conversations" in found.detail
    config.make_missing = False
    assert training_outlook(config).records is None


def test_an_evaluation_of_another_task_is_planned_by_its_own_shards(
    there: Config, tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "mme" / "OCR").mkdir(parents=True)
    (tmp_path / "mme" / "OCR" / "1.txt").write_text("One?\tYes\nTwo?\tNo\n")
    (tmp_path / "mme" / "OCR" / "1.jpg").write_bytes(b"not opened")
    arguments = [f"recipe={there.recipe}", "--plan", "make_missing=true", "task=mme"]
    entry = f"{{source: mme, images: {tmp_path}/mme, out: {tmp_path}/asked}}"
    text = run_stage("evaluate", [*arguments, f"prepare.mme={entry}"], monkeypatch, capsys)
    assert "test: 1 record, would be prepared first from mme" in text
    assert "generated, at most" in text and "evaluate/mme-test" in text
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(
    ("recipe", "trained"),
    [
        ("lavin_scienceqa_7b", 3_781_296),  # as published: 3.8 M
        ("lavin_scienceqa_13b", 5_390_080),  # 5.4 M
        ("lavin_chat_7b", 3_781_296),
        ("lavin_chat_13b", 5_390_080),
        ("llama_adapter_scienceqa_7b", 1_229_760 + 567_396),  # 1.8 M
    ],
)
def test_the_references_sizes_are_planned_without_weights(recipe: str, trained: int) -> None:
    with with_sketches(load_recipe([f"recipe={recipe}"])) as config:
        segment = segments(config, "llm_tune", 398)[-1]
        counted = census(config, "llm_tune", segment, precision="bf16", captions=None, ranks=8)
    assert counted.parameters.trained == trained
    assert counted.parameters.frozen > 6.7e9
