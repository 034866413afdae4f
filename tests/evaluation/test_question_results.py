"""What is left of answers: files in the benchmark's form, and every question accounted for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.answering import Answers
from pipeline.config import Config
from pipeline.data.prepare import prepare
from pipeline.errors import DataError
from pipeline.evaluation.finishing import output_folder
from pipeline.evaluation.loading import Scoring
from pipeline.evaluation.question_results import write_answers
from pipeline.evaluation.samples import read_samples, strata
from pipeline.evaluation.scienceqa import UNPARSED
from pipeline.recipe import load_recipe
from pipeline.splits import Split, open_split
from tests.evaluation.test_questions import ALONE
from tests.tiny import write_questions

MEASURED = {"export": "e", "loss": 1.0, "skipped": {}}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Ten questions, numbers 51 to 60; the right answer of an odd one is A, of an even one B."""
    folder = tmp_path_factory.mktemp("results")
    made = load_recipe([f"recipe={write_questions(folder, 'lavin')}", "evaluate.answers=generate"])
    for entry in made.prepare.values():
        prepare(entry, report=lambda line: None)
    return made


def asked(config: Config, split: Split) -> Scoring:
    model: Any = None  # has answered already
    return Scoring(config, Path("export"), split, split.in_order(4), model, 1.0, ALONE)


def write(config: Config, answers: Answers, **measured: Any) -> dict[str, Any]:
    split = open_split(config, "test")
    return write_answers(asked(config, split), answers, {**MEASURED, **measured})


def test_texts_are_read_as_the_benchmark_does_and_kept(config: Config) -> None:
    texts = {str(pid): "The answer is A. BECAUSE: so." for pid in range(51, 57)}
    texts["57"] = "I think A"
    texts["58"] = "The answer is A. Or: The answer is B."
    texts["59"] = "The answer is E."  # no choice
    result = write(config, Answers(texts=texts, cut=["51", "57"]), skipped={"truncated image": 1})
    written = json.loads((output_folder(config) / "results.json").read_text())
    assert written["outputs"] == texts
    read = dict.fromkeys(map(str, range(51, 57)), 0)
    assert written["results"] == read | dict.fromkeys(("57", "58", "59"), UNPARSED)
    assert written["count"] == 10 and written["correct"] == 3
    assert result["benchmark"]["unparsed"] == 3 and result["benchmark"]["unanswered"] == 1
    assert (result["texts_cut"], result["unparsed_cut"]) == (2, 1)
    assert json.loads((output_folder(config) / "metrics.json").read_text()) == result
    samples = read_samples(output_folder(config))
    assert [each.score for each in samples].count(100.0) == 3
    assert samples[0].truth[0].startswith("(A) ") and "The answer is A." in samples[0].predicted
    for name, value in result["scores"].items():
        (found,) = strata(samples, name)
        assert sum(found.values()) / len(found) == pytest.approx(value), name
    for line in (
        "3 answers that are no choice, counted as wrong",
        "1 questions without an answer, counted as wrong",
        "1 of them were cut at evaluate.max_new_tokens=8, before an answer: raise it",
        "1 records skipped: truncated image",
    ):
        assert line in result["table"].splitlines()


def test_what_the_shards_lack_is_said_below_the_table(config: Config) -> None:
    split = open_split(config, "test")
    lacking = replace(split.manifests[0], skipped={"missing image": 3})
    other = replace(split, manifests=(lacking,))
    shown = replace(config, scienceqa=replace(config.scienceqa, use_caption=True))
    result = write_answers(asked(shown, other), Answers(chosen={}), MEASURED)
    assert result["left_out"] == {"missing image": 3}
    table = result["table"].splitlines()
    assert "3 questions are not in the shards: missing image" in table
    without = "5 questions have an image without the caption that scienceqa.use_caption shows"
    assert without in table


def test_chosen_options_have_no_texts(config: Config) -> None:
    chosen = {str(pid): 1 for pid in range(51, 61)}
    result = write(config, Answers(chosen=chosen, tied=2))
    written = json.loads((output_folder(config) / "results.json").read_text())
    assert written["results"] == chosen and "outputs" not in written
    assert "2 questions with two options equally likely" in result["table"]


def test_the_sheet_shows_questions_that_have_a_picture(config: Config) -> None:
    write(config, Answers(chosen={}))
    sheet = Image.open(output_folder(config) / "samples.png")
    assert sheet.width == 4 * 232  # five of the ten, four in a row
    seen = {colour for _, colour in sheet.convert("RGB").getcolors(100_000)}
    assert {(number, 80, 80) for number in range(51, 60, 2)} <= seen


def test_a_question_that_is_there_twice_is_refused(config: Config) -> None:
    split = open_split(config, "test")
    twice = replace(split, manifests=split.manifests * 2, weights=(1.0, 1.0))
    with pytest.raises(DataError, match=r"question \d+ is there twice"):
        write_answers(asked(config, twice), Answers(), MEASURED)
