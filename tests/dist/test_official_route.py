"""A checkpoint of the reference by the stages: imported, tuned and out again, on 1 and 2 ranks."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.config import PHASES
from pipeline.export_files import ExportTensors
from pipeline.recipe import load_recipe
from pipeline.splits import open_split
from tests.dist.launch import launch, succeeded
from tests.tiny import TIGHT_ZERO3
from tests.untrained import write_untrained

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("official")
    recipe = f"recipe={write_untrained(made)}"
    arguments = [recipe, f"official={made / 'official.pt'}", f"out={made / 'imported'}"]
    succeeded(launch("stages/export.py", arguments, ranks=1))
    split = open_split(load_recipe([recipe]), "val")
    (made / "pictures").mkdir()
    for shard, size in enumerate(split.manifests[0].sizes):
        for record in range(size):
            raw = split.reader.read(shard, record)
            (made / "pictures" / f"{raw.key}.jpg").write_bytes(raw.image)
    (made / "pictures" / "bad.png").write_bytes(b"no")
    return made


def test_two_ranks_caption_as_one(folder: Path) -> None:
    arguments = [f"checkpoint={folder / 'imported'}", f"images={folder / 'pictures'}"]
    outputs = []
    for ranks in (1, 2):
        out = folder / f"captions{ranks}"
        done = launch("stages/caption.py", [*arguments, f"out={out}"], ranks=ranks)
        assert "10 images captioned" in succeeded(done)
        outputs.append([(out / f"captions.{kind}").read_text() for kind in ("jsonl", "html")])
    assert outputs[0] == outputs[1]
    assert len({json.loads(line).get("caption") for line in outputs[0][0].splitlines()}) > 3


def test_it_is_tuned_without_the_phases_before_and_leaves_again(folder: Path) -> None:
    recipe, tuned = f"recipe={folder / 'tiny.yaml'}", folder / "runs" / "tuned"
    start = f"llm_tune.init_from={folder / 'imported'}"
    succeeded(launch("stages/llm_tune.py", [recipe, "name=tuned", start], ranks=2))
    assert [phase for phase in PHASES if (tuned / phase).exists()] == ["llm_tune"]
    summary = json.loads((tuned / "llm_tune" / "summary.json").read_text())
    assert summary["state"] == "finished"
    before, after = ExportTensors(folder / "imported"), ExportTensors(tuned / "llm_tune/export")
    assert before.keys() == after.keys()
    assert not torch.equal(before["st.up.weight"], after["st.up.weight"])

    arguments = [f"checkpoint={tuned}", f"out={folder / 'plain'}"]
    succeeded(launch("stages/export.py", arguments, ranks=1))
    llm = AutoModelForCausalLM.from_pretrained(folder / "plain" / "llm")
    for name, parameter in llm.named_parameters():
        assert torch.equal(parameter, after[f"llm.{name}"]), name


def test_a_checkpoint_of_other_sizes_is_refused_in_one_line(folder: Path) -> None:
    arguments = [f"recipe={folder / 'tiny.yaml'}", f"official={folder / 'official.pt'}"]
    arguments += ["st.kind=transformer", "st.prefix_length=40", f"out={folder / 'other'}"]
    done = launch("stages/export.py", arguments, ranks=2)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("error: ")]
    assert line.endswith("set st.kind=mlp st.prefix_length=4")


@pytest.fixture(scope="module")
def scored(folder: Path) -> Path:
    """The import scored on two ranks: without DeepSpeed, under each ZeRO stage, in tight ZeRO-3."""
    tight = folder / "tight.json"
    tight.write_text(json.dumps(TIGHT_ZERO3))
    stages = {"none": "null", "1": "zero1", "2": "zero2", "3": "zero3", "tight": str(tight)}
    asked = [f"recipe={folder / 'tiny.yaml'}", f"evaluate.export={folder / 'imported'}"]
    asked += ["evaluate.stop=h", "evaluate.metrics=[quick_cider]", "evaluate.max_new_tokens=24"]
    asked += ["evaluate.batch=1"]  # a call for each image, so that ranks end at different tokens
    plan = [
        ("evaluate", [*asked, f"name=under-{name}", f"evaluate.ds_config={value}"])
        for name, value in stages.items()
    ]
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    succeeded(launch("tests/dist/phases_program.py", [str(path)], ranks=2))
    return folder / "runs"


@pytest.mark.parametrize("stage", ["1", "2", "3", "tight"])
def test_scores_are_the_same_under_every_zero_stage_and_without_deepspeed(
    scored: Path, stage: str
) -> None:
    folders = [scored / f"under-{name}" / "evaluate" / "test" for name in ("none", stage)]
    alone, under = ((each / "predictions.jsonl").read_text().splitlines() for each in folders)
    assert alone == under
    metrics = [json.loads((each / "metrics.json").read_text()) for each in folders]
    assert metrics[0]["scores"] == metrics[1]["scores"]
    assert metrics[1]["loss"] == pytest.approx(metrics[0]["loss"], rel=1e-6)


def test_there_the_two_ranks_ended_at_different_tokens(scored: Path) -> None:
    lines = (scored / "under-none" / "evaluate" / "test" / "predictions.jsonl").read_text()
    captions = [json.loads(line)["caption"] for line in lines.splitlines()]
    steps = zip(captions[::2], captions[1::2], strict=True)  # a record for each rank
    assert any(len(first) != len(second) for first, second in steps)
