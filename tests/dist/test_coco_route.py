"""The whole route on real photographs: recipe clipcap_coco_small on the images of ../shared, on two
processes, by the two commands that a user gives; its epochs are shortened to a few steps.
"""

import json
import math
import shutil
from pathlib import Path

import pytest

from pipeline.config import PHASES
from pipeline.data.manifest import load_manifest
from tests.dist.launch import launch, succeeded
from tests.helpers import require_shared, require_system

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.shared]

SHORTENED = (
    "pretrain.clip.epochs=1",
    "pretrain.llm.epochs=4",
    "encoder_adapt.epochs=1",
    "st_align.epochs=1",
    "llm_tune.caption_records=0",
    "llm_tune.segments=[{train: [st], epochs: 0.5}, {train: [st, llm], epochs: 2}]",
)


@pytest.fixture(scope="module")
def route(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one command, in an empty folder, has left shards, weights, phases and scores."""
    require_system("java")
    coco, folder = require_shared("data", "coco"), tmp_path_factory.mktemp("coco")
    places = (f"paths.coco={coco}", f"paths.shards={folder / 'data'}", f"runs={folder / 'runs'}")
    recipe = ("recipe=clipcap_coco_small", "name=run", f"pretrain.out={folder / 'weights'}")
    succeeded(launch("stages/evaluate.py", [*recipe, *places, *SHORTENED], ranks=2))
    return folder


def lines_of(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_every_record_is_prepared_in_karpathys_split(route: Path) -> None:
    counts = {each.name: load_manifest(each).records for each in (route / "data").iterdir()}
    assert counts == {"train": 383, "val": 46, "test": 56}


def test_every_phase_learns(route: Path) -> None:
    for phase in PHASES:
        summary = json.loads((route / "runs" / "run" / phase / "summary.json").read_text())
        assert (summary["state"], summary["records_skipped"]) == ("finished", {})
    before, after = (summary["validation"][when]["loss"] for when in ("start", "end"))
    assert after < before - 0.1


def test_the_test_split_is_captioned_and_scored(route: Path) -> None:
    folder = route / "runs" / "run" / "evaluate" / "test"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["records"], metrics["records_skipped"]) == (56, 0)
    assert {"Bleu_4", "METEOR", "ROUGE_L", "CIDEr"} <= metrics["scores"].keys()
    assert all(map(math.isfinite, [metrics["loss"], *metrics["scores"].values()]))
    ids = {int(each["image_id"]) for each in lines_of(folder / "predictions.jsonl")}
    lists = require_shared("data", "coco", "splits", "karpathy_test_images.txt")
    assert len(ids) == 56 and ids <= {int(line.split()[-1]) for line in lists.open()}


def test_its_photographs_get_the_same_captions_as_files(route: Path) -> None:
    predictions = lines_of(route / "runs" / "run" / "evaluate" / "test" / "predictions.jsonl")
    expected = {f"{each['key']}.jpg": each["caption"] for each in predictions[::20]}
    (route / "photos").mkdir()
    for name in expected:
        shutil.copy(require_shared("data", "coco", "images", name), route / "photos")
    arguments = [f"checkpoint={route / 'runs' / 'run'}", f"images={route / 'photos'}"]
    said = succeeded(launch("stages/caption.py", arguments, ranks=1))
    assert "3 images captioned, 3 on the sheet; skipped: none" in said
    captions = lines_of(route / "runs" / "run" / "captions" / "photos" / "captions.jsonl")
    assert {each["file"]: each["caption"] for each in captions} == expected
