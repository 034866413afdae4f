"""LaVIN and LLaMA-Adapter on questions: all phases on one rank and two, stopped, resumed, exported.

Half of the questions have an image; under ZeRO-3 that really partitions, ranks meet whose batch has
none.
"""

import json
from pathlib import Path

import pytest
import torch

from pipeline.config import PHASES, PrepareConfig
from pipeline.data.loader import Share, StepDataset
from pipeline.data.prepare import prepare
from pipeline.evaluation.mme_files import GENERATED, LIKELIHOOD
from pipeline.evaluation.scienceqa import read_results
from pipeline.export_files import ExportTensors
from pipeline.models.encoder import load_clip
from pipeline.models.llm import load_tokenizer
from pipeline.recipe import load_recipe
from pipeline.splits import Images, caption_dataset, open_training, pair_dataset
from tests.dist.launch import launch, succeeded
from tests.dist.test_training import scalars, summary
from tests.evaluation.test_mme_runner import put_mme
from tests.tiny import TIGHT_ZERO3, write_questions

pytestmark = pytest.mark.dist
FAMILIES = ("lavin", "llama_adapter")
STOPPED = {"encoder_adapt": 2, "st_align": 1, "llm_tune": 3}  # llm_tune: in its second segment
ADDED = {"lavin": "adapters.", "llama_adapter": "adaption."}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All phases of both families: whole and stopped on 2 ranks, whole on 1 rank."""
    folder = tmp_path_factory.mktemp("science")
    tight = folder / "tight.json"
    tight.write_text(json.dumps(TIGHT_ZERO3))
    put_mme(folder / "raw-mme")
    asked = PrepareConfig(
        source="mme", images=str(folder / "raw-mme"), out=str(folder / "mme"), workers=0
    )
    prepare(asked, report=lambda line: None)
    for family in FAMILIES:
        recipe = f"recipe={write_questions(folder, family, ds_config=str(tight))}"
        two = [("prepare", [recipe]), ("pretrain", [recipe, f"name={family}-base"])]
        one = []
        for phase in PHASES:
            stop = f"{phase}.stop_after={STOPPED[phase]}"
            two.append((phase, [recipe, f"name={family}-whole"]))
            two.append((phase, [recipe, f"name={family}-stopped", stop]))
            two.append((phase, [recipe, f"name={family}-stopped"]))
            one.append((phase, [recipe, f"name={family}-alone", f"{phase}.micro_batch=5"]))
        start = folder / "runs" / f"{family}-whole" / "st_align" / "export"
        saving = [f"llm_tune.init_from={start}", "llm_tune.activation_checkpointing=true"]
        two.append(("llm_tune", [recipe, f"name={family}-saving", *saving]))
        tuned = f"evaluate.export={folder / 'runs' / f'{family}-whole' / 'llm_tune' / 'export'}"
        scored = ("evaluate", [recipe, f"name={family}-scored", tuned, "evaluate.batch=3"])
        two.append(("evaluate", [recipe, f"name={family}-whole", f"evaluate.ds_config={tight}"]))
        said = ["evaluate.answers=generate", "evaluate.beams=1", "evaluate.max_new_tokens=24"]
        said += ["evaluate.batch=3", "evaluate.records=7"]  # the last step is a dummy's on rank 1
        partitioned = f"evaluate.ds_config={tight}"
        two.append(("evaluate", [recipe, f"name={family}-said-two", tuned, *said, partitioned]))
        alone = ("evaluate", [recipe, f"name={family}-said-one", tuned, *said])
        counted = [f"name={family}", tuned, partitioned, "evaluate.records=4", "evaluate.batch=1"]
        two.append(("costs", [recipe, *counted]))
        one += [scored, alone]
        mme = [tuned, "evaluate.task=mme", f"evaluate.shards={folder / 'mme'}", "evaluate.batch=3"]
        mme += ["evaluate.beams=1", "evaluate.max_new_tokens=6"]
        two.append(("evaluate", [recipe, f"name={family}-mme-two", *mme, partitioned]))
        one.append(("evaluate", [recipe, f"name={family}-mme-one", *mme]))
        if family == "llama_adapter":  # V1's text model, trained and scored by itself
            blind = [f"{each}.enabled=false" for each in ("encoder_adapt", "st_align")]
            blind += ["llama_adapter.sees_images=false", f"name={family}-text"]
            two.append(("llm_tune", [recipe, *blind, "llm_tune.segments=[]"]))
            two.append(("evaluate", [recipe, *blind, "llm_tune.segments=[]", partitioned]))
        for ranks, plan in ((2, two), (1, one)):
            path = folder / f"plan{ranks}.json"
            path.write_text(json.dumps(plan))
            succeeded(launch("tests/dist/phases_program.py", [str(path)], ranks=ranks))
    return folder / "runs"


@pytest.mark.parametrize("phase", PHASES)
def test_one_rank_alone_sees_an_image_in_some_steps_and_no_rank_in_others(
    runs: Path, phase: str
) -> None:
    """Otherwise the tests below would show nothing about it."""
    config = load_recipe([f"recipe={runs.parent / 'lavin.yaml'}"])
    train, settings = open_training(config), getattr(config, phase)
    tokenizer, clip = load_tokenizer(config.llm), load_clip(config.encoder)

    def dataset(rank: int) -> StepDataset:
        share = Share(rank, 2, 2, settings.micro_batch)
        plan = train.plan(settings.global_batch, seed=config.seed)
        if phase == "encoder_adapt":
            return pair_dataset(config, train, plan, clip, share, captions="one")
        black = Images(None, (2, 4))
        return caption_dataset(config, train, plan, black, tokenizer, share, captions="all")

    seeing = []  # ranks with an image, of each micro-batch
    for step in range(4):  # an epoch
        loaded = [dataset(rank)[step] for rank in (0, 1)]
        for pair in zip(*(each.batches for each in loaded), strict=True):
            seeing.append(sum(any(int(key) % 2 for key in batch.keys) for batch in pair))
    assert {0, 1, 2} <= set(seeing)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_and_two_ranks_agree_in_every_loss(runs: Path, family: str, phase: str) -> None:
    two, one = (scalars(runs / f"{family}-{n}", phase, "train/loss") for n in ("whole", "alone"))
    assert two.keys() == one.keys() and len(one) >= 4
    for step, loss in one.items():
        assert abs(two[step] - loss) <= 1e-5 * abs(loss), (step, two[step], loss)


def test_the_parts_of_a_segment_have_rates_of_their_own(runs: Path) -> None:
    found = {
        part: scalars(runs / "lavin-whole", "llm_tune", f"lr/{part}")
        for part in ("encoder_adapters", "st", "adapters")
    }
    both = found["encoder_adapters"].keys()  # the second segment's steps
    assert both and both < found["adapters"].keys()
    for step in both:
        rate = found["adapters"][step]
        assert found["encoder_adapters"][step] == pytest.approx(rate / 2)
        assert found["st"][step] == pytest.approx(2 * rate)


@pytest.mark.parametrize("phase", ("st_align", "llm_tune"))
@pytest.mark.parametrize("family", FAMILIES)
def test_one_and_two_ranks_agree_in_the_accuracy_while_they_train(
    runs: Path, family: str, phase: str
) -> None:
    """Of ten questions, or five, which two partitioned ranks share unequally."""
    two, one = (scalars(runs / f"{family}-{n}", phase, "val/accuracy") for n in ("whole", "alone"))
    assert two == one and len(one) >= 2
    records = {"st_align": 10, "llm_tune": 5}[phase]
    assert all((value * records / 100).is_integer() for value in one.values())
    shown = summary(runs / f"{family}-whole", phase)["validation"]
    assert {"loss", "accuracy"} <= shown["start"].keys() & shown["end"].keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_changes_no_loss(runs: Path, family: str) -> None:
    """Nor in the tower, whose adapters train in LaVIN's second segment."""
    plain, saving = (
        scalars(runs / f"{family}-{n}", "llm_tune", "train/loss") for n in ("whole", "saving")
    )
    assert plain.keys() == saving.keys()
    assert all(abs(saving[step] - loss) <= 1e-5 * abs(loss) for step, loss in plain.items())


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_stopped_and_resumed_equals_uninterrupted(runs: Path, family: str, phase: str) -> None:
    names = [f"{family}-{name}" for name in ("whole", "stopped")]
    whole, stopped = (ExportTensors(runs / name / phase / "export") for name in names)
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    first, second = (scalars(runs / name, phase, "train/loss") for name in names)
    assert first == second
    assert (
        summary(runs / names[0], phase)["validation"]
        == summary(runs / names[1], phase)["validation"]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_holds_what_trained_and_what_was_taken_over(runs: Path, family: str) -> None:
    adapted, aligned, tuned = (
        ExportTensors(runs / f"{family}-whole" / phase / "export") for phase in PHASES
    )
    tower = {name for name in adapted if name.startswith("encoder.")}
    inside = "encoder.adapters." if family == "lavin" else "encoder.visual."
    assert tower and all(name.startswith(inside) for name in tower)
    st = {name for name in aligned if name.startswith("st.")}
    gates = {name for name in aligned if name.endswith(".gate")}
    assert st and set(aligned) == tower | st | gates
    assert bool(gates) == (family == "llama_adapter")
    added = {name for name in tuned if name.startswith(ADDED[family])}
    assert gates < added and set(tuned) == tower | st | added
    trained = sum(each.numel() for name, each in tuned.items() if name in added | st)
    if family == "lavin":  # joint with the tower's adapters, as the reference
        trained += sum(tuned[name].numel() for name in tower)
    assert summary(runs / f"{family}-whole", "llm_tune")["trained_parameters"] == trained


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_that_trains_changes(runs: Path, family: str) -> None:
    adapted, aligned, tuned = (
        ExportTensors(runs / f"{family}-whole" / phase / "export") for phase in PHASES
    )
    assert not all(torch.equal(aligned[name], tuned[name]) for name in aligned if "st." in name)
    moved = [name for name in adapted.keys() & tuned.keys() if "encoder.adapters." in name]
    assert not moved or any(not torch.equal(adapted[name], tuned[name]) for name in moved)
    fresh = [each for name, each in tuned.items() if name.endswith((".gate", ".up.0.weight"))]
    assert fresh and all(bool(each.any()) for each in fresh)  # they start at zero


@pytest.mark.parametrize("family", FAMILIES)
def test_two_partitioned_ranks_answer_as_one_without_deepspeed(runs: Path, family: str) -> None:
    folders = [runs / f"{family}-{name}" / "evaluate" / "test" for name in ("whole", "scored")]
    two, one = (read_results(folder / "results.json") for folder in folders)
    assert two == one and len(one) == 10
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    assert metrics[0]["benchmark"] == metrics[1]["benchmark"]
    assert metrics[0]["loss"] == pytest.approx(metrics[1]["loss"], rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_partitioned_ranks_say_what_one_says_without_deepspeed(runs: Path, family: str) -> None:
    folders = [runs / f"{family}-said-{ranks}" / "evaluate" / "test" for ranks in ("two", "one")]
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    assert results[0] == results[1]
    assert len(results[0]["outputs"]) == len(results[0]["results"]) == 7
    if family == "lavin":  # the other one learns in so few steps to say one thing to all
        assert len(set(results[0]["outputs"].values())) > 1
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    assert metrics[0]["benchmark"] == metrics[1]["benchmark"]
    assert metrics[0]["texts_cut"] == metrics[1]["texts_cut"]
    unparsed = sum(index < 0 for index in results[0]["results"].values())
    assert metrics[0]["benchmark"]["unparsed"] == unparsed


@pytest.mark.parametrize("family", FAMILIES)
def test_two_partitioned_ranks_answer_mme_as_one_without_deepspeed(runs: Path, family: str) -> None:
    """Seven images in batches of three: the last step is a dummy's on rank 1."""
    two, one = (runs / f"{family}-mme-{n}" / "evaluate" / "mme-test" for n in ("two", "one"))
    for way in (GENERATED, LIKELIHOOD):
        names = [sorted(each.name for each in (folder / way).iterdir()) for folder in (two, one)]
        assert names == [["OCR.txt", "existence.txt"]] * 2
        assert all((two / way / n).read_bytes() == (one / way / n).read_bytes() for n in names[0])
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (two, one)]
    for key in ("generated", "likelihood", "scores", "records", "skipped"):
        assert metrics[0][key] == metrics[1][key]
    assert metrics[0]["records"] == 7
    assert metrics[0]["loss"] == pytest.approx(metrics[1]["loss"], rel=1e-5)
    assert (two / "samples.jsonl").read_bytes() == (one / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_options_take_a_tenth_of_the_passes_and_positions_of_64_tokens(
    runs: Path, family: str
) -> None:
    """Counted alike, by a hook on the LLM in ZeRO-3 partitions.

    Passes: 1 a batch against 64 (LaVIN's routing weights take one more), with a KV cache or
    without. Positions: ten times fewer than without a cache, where each new token sends all before
    it through again. With a cache each prompt goes through once in either way, so that positions
    are only about (P + 63) / P times fewer for prompts of length P: passes are what is saved then.
    (Here not even that: this small tokenizer splits letters, so each option takes a row.)
    """
    counts = json.loads((runs.parent / f"plan2.costs-{family}.json").read_text())
    (compared, options), (passes, cached), (_, uncached) = (
        counts[way] for way in ("likelihood", "cached", "uncached")
    )
    questions = counts["questions"]
    assert compared == questions == 4
    assert passes == questions * (64 + (family == "lavin"))
    assert passes >= 10 * compared
    assert uncached >= 10 * options
    assert cached < 10 * options
    scored = json.loads((runs / f"{family}-scored/evaluate/test/metrics.json").read_text())
    assert scored["llm_passes"] == 1
    told = scored["generating_64_tokens"]
    assert told["llm_passes"] == 64
    assert told["token_forwards_without_cache"] >= 10 * scored["token_forwards"]


def test_a_text_model_trains_its_prompts_alone_and_answers_without_the_images(runs: Path) -> None:
    export = ExportTensors(runs / "llama_adapter-text" / "llm_tune" / "export")
    assert export and all(name.startswith("adaption.late.") for name in export)
    metrics = json.loads((runs / "llama_adapter-text/evaluate/test/metrics.json").read_text())
    assert "5 questions have an image, which this model does not see" in metrics["table"]
    assert metrics["records"] == 10 and metrics["benchmark"]["unanswered"] == 0
