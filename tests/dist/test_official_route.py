"""A checkpoint of the reference by the stages: imported, tuned and out again, on 1 and 2 ranks."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.checkpoint import ExportTensors
from pipeline.recipe import load_recipe
from pipeline.splits import open_split
from tests.dist.launch import launch, succeeded
from tests.untrained import write_untrained

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("official")
    recipe = f"recipe={write_untrained(made)}"
    arguments = [recipe, f"official={made / 'official.pt'}", f"out={made / 'imported'}"]
    succeeded(launch("stages/export.py", arguments, ranks=1, launcher="python"))
    split = open_split(load_recipe([recipe]), "val")
    (made / "pictures").mkdir()
    for shard, size in enumerate(split.manifests[0].sizes):
        for record in range(size):
            raw = split.reader.read(shard, record)
            (made / "pictures" / f"{raw.key}.jpg").write_bytes(raw.image)
    (made / "pictures" / "bad.png").write_bytes(b"no")
    return made


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_two_ranks_caption_as_one(folder: Path, launcher: str) -> None:
    arguments = [f"checkpoint={folder / 'imported'}", f"images={folder / 'pictures'}"]
    outputs = []
    for ranks, how in ((1, "python"), (2, launcher)):
        out = folder / f"{how}{ranks}"
        done = launch("stages/caption.py", [*arguments, f"out={out}"], ranks=ranks, launcher=how)
        assert "10 images captioned" in succeeded(done)
        outputs.append([(out / f"captions.{kind}").read_text() for kind in ("jsonl", "html")])
    assert outputs[0] == outputs[1]
    assert len({json.loads(line).get("caption") for line in outputs[0][0].splitlines()}) > 3


def test_it_is_tuned_without_the_phases_before_and_leaves_again(folder: Path) -> None:
    recipe, tuned = f"recipe={folder / 'tiny.yaml'}", folder / "runs" / "tuned"
    start = f"llm_tune.init_from={folder / 'imported'}"
    succeeded(launch("stages/llm_tune.py", [recipe, "name=tuned", start], ranks=2))
    assert [each.name for each in tuned.iterdir() if each.is_dir()] == ["llm_tune"]
    summary = json.loads((tuned / "llm_tune" / "summary.json").read_text())
    assert summary["state"] == "finished"
    before, after = ExportTensors(folder / "imported"), ExportTensors(tuned / "llm_tune/export")
    assert before.keys() == after.keys()
    assert not torch.equal(before["st.up.weight"], after["st.up.weight"])

    arguments = [f"checkpoint={tuned}", f"out={folder / 'plain'}"]
    succeeded(launch("stages/export.py", arguments, ranks=1, launcher="python"))
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
