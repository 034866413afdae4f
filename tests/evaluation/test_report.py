"""`report.html`: offline, safe whatever texts are, bounded, filtered by its own script."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.callbacks.board import Board
from pipeline.config import PHASES, PrepareConfig
from pipeline.data.manifest import load_manifest
from pipeline.data.plan import items_in_order
from pipeline.data.prepare import prepare
from pipeline.dist import World
from pipeline.evaluation.mme import Answer
from pipeline.evaluation.mme_files import write_results
from pipeline.evaluation.report import write_report, write_reports
from pipeline.evaluation.samples import Sample, write_samples
from pipeline.recipe import load_recipe
from pipeline.splits import Split
from tests.helpers import require_system
from tests.pages.browser import look

EVIL = "</script><script>alert(1)</script><img src=http://evil.test/x>\"'& $\\frac$"
RECORDS = 30
WORLD = World(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    out = tmp_path_factory.mktemp("shards")
    counts = {"train": 1, "val": 1, "test": RECORDS}
    entry = PrepareConfig(source="scenes", out=str(out), counts=counts, image_size=32, workers=0)
    prepare(entry, report=lambda line: None)
    return Split(load_recipe([]).data, (load_manifest(str(out / "test"), None),))


def places(split: Split) -> dict[str, tuple[int, int]]:
    items = items_in_order(split.in_order(4))
    return {split.reader.read(*each).key: each for each in items}


def put(folder: Path, keys: list[str], *, better: float = 0.0, **more: Any) -> Path:
    """An evaluation as the stages leave it: samples of score i mod 5, every third in group A."""
    folder.mkdir(parents=True)
    samples = [
        Sample(
            key,
            f"{EVIL} number-{i}.",
            (f"true {i} {EVIL}", EVIL),
            {"Avg": float(i % 5) + better},
            EVIL,
            ("A",) if i % 3 == 0 else (EVIL,),
        )
        for i, key in enumerate(keys)
    ]
    write_samples(folder, samples)
    scores = {"Avg": 2.0 + better, "A": 1.0, EVIL: 3.0}
    metrics = {"export": EVIL, "records": len(keys), "loss": 1.0, "scores": scores, **more}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    for phase in PHASES:
        board = Board(folder.parents[1] / phase / "tensorboard", WORLD, prefix=phase, done=0)
        for step in range(1, 9):
            board.scalars({"train/loss": 1.0 / step}, step)
        board.scalars({"val/loss": 0.5, "val/cider": 0.1}, 8)
        board.close()
    return folder


def test_a_report_is_one_file_in_which_no_text_becomes_markup(split: Split, tmp_path: Path) -> None:
    found = places(split)
    put(tmp_path / "x-baseline" / "evaluate" / "test", list(found), better=-0.5)
    folder = put(tmp_path / "x" / "evaluate" / "test", list(found))
    page = write_report(folder, split, found, shown=500).read_text()
    assert page.count("<script>") == 1 and "alert(1)&lt;/script&gt;" in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:image/|#)""", page)
    assert "evil.test" in page and "<img src=http" not in page
    assert f"All {RECORDS} samples, worst first" in page
    assert page.count("data:image/jpeg;base64,") == RECORDS
    assert page.count("data:image/svg+xml;base64,") == 2 + 2 * len(PHASES)
    # Paired: every sample is half a point better, whichever are drawn.
    text = " ".join(re.sub("<[^>]*>", " ", page).split())
    assert "Avg 1.5000" in text and "+0.5000 +0.5000 to +0.5000" in text


def test_no_more_are_shown_than_asked_and_the_rest_is_counted(split: Split, tmp_path: Path) -> None:
    found = places(split)
    folder = put(tmp_path / "x" / "evaluate" / "test", [*found, *(f"k{i}" for i in range(5000))])
    page = write_report(folder, split, found, shown=7).read_text()
    assert "7 of 5,030 samples, worst first" in page
    told = "7 of 5,030 samples are shown: the worst 6, the best 1; all are in samples.jsonl"
    assert told in page.partition("</main>")[2]
    assert page.count("<figure data-order=") == 7
    assert (page.count('data-score="0.0"'), page.count('data-score="4.0"')) == (6, 1)
    assert "no baseline has been evaluated" in page


def test_an_evaluated_baseline_enters_the_report_of_its_run(split: Split, tmp_path: Path) -> None:
    found = places(split)
    run = put(tmp_path / "x" / "evaluate" / "test", list(found))
    other = put(tmp_path / "y" / "evaluate" / "test", [*found, "one more"])
    for folder in (run, other):
        write_reports(folder, split, found, shown=3)
    for name in ("x-baseline", "y-baseline"):
        base = put(tmp_path / name / "evaluate" / "test", list(found), better=-0.5)
        write_reports(base, split, found, shown=3)
        assert f"the baseline of {name[0]}: without" in (base / "report.html").read_text()
    page = (run / "report.html").read_text()
    assert "no baseline" not in page and "+0.5000 to +0.5000" in page
    (run / "metrics.json").write_text("{")
    write_reports(base.parents[2] / "x-baseline/evaluate/test", split, found, shown=3)
    assert (run / "report.html").read_text() == page  # and the baseline's own is written
    # Its samples are others: what stands there is of its own evaluation.
    assert "no baseline has been evaluated" in (other / "report.html").read_text()


def test_yes_and_no_are_counted_in_both_ways_of_answering(split: Split, tmp_path: Path) -> None:
    found = places(split)
    folder = put(tmp_path / "x" / "evaluate" / "mme-test", list(found))
    answers = [Answer("1.jpg", "q", "Yes", "yes"), Answer("1.jpg", "q", "No", "Yes, a dog")]
    for way in ("answers", "answers_likelihood"):
        write_results(folder / way, {"OCR": answers})
    page = write_report(folder, split, found, shown=3).read_text()
    # An image has two answers, of a word each.
    assert "Words of a text: this run: 2 on average; truth: 1 on average" in page
    for way in ("generated", "likelier"):
        assert f"Yes and no, {way}: this run: 1 of true yes said yes; 0 of true yes said no" in page
        assert "1 of true no said yes" in page


def test_in_a_browser_it_fits_a_phone_and_its_script_filters_and_sorts(
    split: Split, tmp_path: Path
) -> None:
    require_system("chromium")
    found = places(split)
    put(tmp_path / ("x" * 60 + "-baseline") / "evaluate" / "test", list(found))
    folder = put(tmp_path / ("x" * 60) / "evaluate" / "test", list(found))
    path = write_report(folder, split, found, shown=500)
    seen = look(
        path,
        """
  const set = (id, value, event) => {
    const control = inside.getElementById(id);
    control.value = value;
    control.dispatchEvent(new Event(event));
  };
  const shown = () => [...inside.querySelectorAll("main figure")].filter(e => !e.hidden);
  found.scripts = inside.scripts.length;
  found.all = shown().length;
  const options = [...inside.querySelectorAll("#group option")];
  found.groups = options.map(e => e.textContent.split(" ").pop());
  found.first = Number(shown()[0].dataset.score);
  set("order", "best", "change");
  found.best = Number(shown()[0].dataset.score);
  set("worth", "zero", "input");
  found.zero = shown().length;
  set("worth", "any", "input");
  set("group", "1", "input");
  found.group = shown().length;
  set("search", "NUMBER-3. alert", "input");
  found.words = shown().map(e => e.querySelector(".said").textContent.split(" ").pop());
  found.said = inside.getElementById("count").textContent;
""",
    )
    assert seen["groups"] == ["group", "(20)", "(10)"]
    assert (seen["first"], seen["best"], seen["zero"], seen["group"]) == (0, 4, 6, 10)
    assert seen["words"] == ["number-3."] and seen["said"] == "1 of 30"
    assert (seen["all"], seen["scripts"], seen["count"]) == (RECORDS, 1, seen["loaded"])
    assert 380 <= seen["width"] <= 400 and seen["needed"] <= seen["width"]
