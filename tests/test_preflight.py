"""Recipes that cannot work: each is answered before the first step, by one line with a remedy."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from pipeline import preflight
from pipeline.config import Config, PrepareConfig
from pipeline.data.prepare import prepare
from pipeline.errors import UserError
from pipeline.explain.standing import ALONE
from pipeline.export_files import save_export
from pipeline.progress import Progress
from pipeline.recipe import load_recipe
from pipeline.run import effective
from tests.small import build


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that works, and beside it the parts of recipes that do not."""
    folder = tmp_path_factory.mktemp("preflight")
    build(folder)
    nothing = PrepareConfig(source="scenes", out=str(folder / "data"), counts={"empty": 0})
    prepare(nothing, report=lambda line: None)
    bare = folder / "bare"  # a language model without its weights
    shutil.copytree(folder / "weights" / "llm", bare)
    (bare / "model.safetensors").unlink()
    other = folder / "other_tokenizer"  # a model that embeds fewer tokens than its tokenizer has
    shutil.copytree(folder / "weights" / "llm", other)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "vocab_size": 200}))
    save(folder / "wide_st", {"st.up.weight": torch.zeros(24, 512)})
    save(folder / "other_kind", {"st.prefix_const": torch.zeros(4, 32)})
    (folder / "a_file").write_text("")
    return folder


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_export(folder, tensors, Progress(), {"fingerprint": "x", "phase": "st_align"}, Config())


def answer(folder: Path, *arguments: str, until: str = "llm_tune") -> str | None:
    """The error of a recipe on its real way, from the command line to the first step."""
    filled = [each.replace("@", str(folder)) for each in arguments]
    try:
        config = load_recipe([f"recipe={folder / 'tiny.yaml'}", *filled])
        preflight.check(effective(config), ALONE, until=until)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("until", ["encoder_adapt", "st_align", "llm_tune", "evaluate"])
def test_a_recipe_that_works_is_not_refused(folder: Path, until: str) -> None:
    assert answer(folder, "evaluate.metrics=[quick_cider]", until=until) is None


WRONG = {
    "no shards": (["data.shards=/nowhere"], "run stages/prepare.py"),
    "no folder of shards": (["data.shards="], "data.shards is empty"),
    "a split that is not there": (["data.val_split=vla"], "there are empty, test, train, val"),
    "an empty split": (["data.val_split=empty"], "holds no records"),
    "too few records": (["st_align.global_batch=64"], "holds 40 records"),
    "no such tower": (["encoder.arch=ViT-B-23"], "did you mean ViT-B-32"),
    "no folder of a tower": (["encoder.arch=local-dir:/nowhere"], "there is no /nowhere"),
    "no such tag": (
        ["encoder.arch=ViT-B-32", "encoder.pretrained=opneai"],
        "did you mean openai",
    ),
    "no file of weights": (
        ["encoder.arch=ViT-B-32", "encoder.pretrained=/weights/ViT-B-32.pt"],
        "there is no file /weights/ViT-B-32.pt",
    ),
    "more blocks than there are": (["encoder_adapt.train=last:9"], "the tower has 2 blocks"),
    "no language model": (["llm.path=/nowhere"], "there is no folder /nowhere"),
    "no weights in it": (["llm.path=@/bare"], "has neither model.safetensors"),
    "another tokenizer": (["llm.path=@/other_tokenizer"], "does not belong to the model"),
    "heads that do not divide": (
        ["st.kind=transformer", "st.num_heads=5"],
        "does not divide the LLM's width 32",
    ),
    "rows beyond the context": (["data.max_tokens=127"], "at most 124 fit"),
    "captions beyond the context": (["evaluate.max_new_tokens=500"], "at most 124 fit"),
    "no such export": (["st_align.init_from=@/data"], "is not a finished export"),
    "an ST of another encoder": (["st_align.init_from=@/wide_st"], "is (24, 512), the model's is"),
    "another ST": (["llm_tune.init_from=@/other_kind"], "which this model does not have"),
    "runs in a file": (["runs=@/a_file/runs"], "a_file is no folder"),
    "more checkpoints than disk": (
        ["llm_tune.keep_checkpoints=1000000000"],
        "keep fewer checkpoints",
    ),
    "a batch beyond one phase": (["encoder_adapt.global_batch=41"], "encoder_adapt.global_batch"),
    "no such ds_config": (["st_align.ds_config=zero4"], "zero3_offload"),
    "a variable that is not set": (["data.shards=$NOWHERE_SET/x"], "no variable NOWHERE_SET"),
    "braces around a variable": (["data.shards=${HOME}/x"], "has none ($HOME)"),
    "no records to score": (["evaluate.records=0"], "must be 1 or more"),
    "a plan for nobody": (["plan_ranks=0"], "plan_ranks=0 must be 1 or more"),
    "betas": (["llm_tune.betas=[0.9, 1.0]"], "must be two numbers in [0, 1)"),
    "eps": (["llm_tune.eps=0"], "llm_tune.eps=0.0 must be above zero"),
}


@pytest.mark.parametrize(("arguments", "expected"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_recipe_is_one_line_with_its_remedy(
    folder: Path, arguments: list[str], expected: str
) -> None:
    message = answer(folder, *arguments)
    assert message is not None and "\n" not in message
    assert expected in message
    key = arguments[-1].partition("=")[0]
    assert key.split(".")[-1] in message  # it names the key


def test_overlap_below_zero2_is_refused(folder: Path) -> None:
    path = folder / "overlap.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1, "overlap_comm": True}}))
    message = answer(folder, f"st_align.ds_config={path}")
    assert message is not None and "overlap_comm needs ZeRO-2" in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate.split=tset"], "there are empty, test, train, val"),
        (["evaluate.split=empty"], "evaluate.split=empty"),
        (["evaluate.metrics=[cidre]"], "did you mean cider"),
    ],
)
def test_what_only_an_evaluation_reads_is_checked_there(
    folder: Path, arguments: list[str], expected: str
) -> None:
    quick = [] if "metrics" in arguments[0] else ["evaluate.metrics=[quick_cider]"]
    assert answer(folder, *arguments, *quick, until="st_align") is None
    message = answer(folder, *arguments, *quick, until="evaluate")
    assert message is not None and expected in message


def test_java_is_asked_for_before_anything_is_captioned(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    message = answer(folder, "evaluate.metrics=[bleu]", until="evaluate")
    assert message is not None and "default-jre-headless" in message


def test_a_precision_that_the_device_lacks_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = namedtuple("Lacking", "is_bf16_supported is_fp16_supported")(bool, bool)
    monkeypatch.setattr("pipeline.engine.get_accelerator", lambda: lacking)
    message = answer(folder, "precision=bf16")
    assert message is not None
    assert "precision=bf16: this CPU does not compute in it; use auto, or one of fp32" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(folder: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    message = answer(folder, f"runs={tmp_path}/runs")
    assert message is not None and "cannot be written to" in message


def test_every_fault_of_a_recipe_can_be_asked_for_at_once(folder: Path) -> None:
    changes = ["data.val_split=vla", "llm.path=/nowhere", "encoder_adapt.train=last:9"]
    config = load_recipe([f"recipe={folder / 'tiny.yaml'}", *changes])
    found = [str(each) for each in preflight.problems(config, ALONE, until="llm_tune")]
    for expected in ("data.val_split=vla", "there is no folder /nowhere", "the tower has 2 blocks"):
        assert any(expected in each for each in found)
