"""Evaluation of conversations: the last answer is generated behind all that was said before."""

import json
from pathlib import Path

import pytest

from pipeline.config import PrepareConfig
from pipeline.data.prepare import prepare
from pipeline.evaluation.finishing import output_folder
from pipeline.evaluation.runner import evaluate
from pipeline.evaluation.samples import read_samples, strata
from pipeline.models.scratch import train_tokenizer
from pipeline.recipe import load_recipe
from tests.data.samples import jpeg
from tests.evaluation.test_mme_runner import with_random_export
from tests.evaluation.test_questions import ALONE
from tests.tiny import write_questions


def test_conversations_are_scored_by_their_last_answers(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    turns = [
        {"from": "human", "value": "<image>What?"},
        {"from": "gpt", "value": "A dog."},
        {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "There."},
    ]
    seen = {"image": "a.jpg", "conversations": turns}
    read = {"instruction": "Add one and one.", "output": "Two."}
    (tmp_path / "talk.json").write_text(json.dumps([seen, read]))
    entry = PrepareConfig(
        source="instruct",
        annotations=[str(tmp_path / "talk.json")],
        images=str(tmp_path),
        split="test",
        out=str(tmp_path / "talks"),
        workers=0,
    )
    prepare(entry, report=lambda line: None)
    arguments = [f"evaluate.shards={tmp_path / 'talks'}", "evaluate.task=instruct"]
    recipe = f"recipe={write_questions(tmp_path, 'lavin')}"
    made = load_recipe([recipe, *arguments, "evaluate.metrics=[rouge_l]"])
    tokenizer = train_tokenizer(["Instruction: What?\nResponse: There."], 300)
    result = evaluate(with_random_export(made, tmp_path, tokenizer), ALONE)
    assert result["records"] == 2 and list(result["scores"]) == ["ROUGE_L"]
    assert result["retrieval"] == {} and result["loss"] > 0
    folder = output_folder(made)
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    assert folder.name == "instruct-test" and len(lines) == 2
    samples = read_samples(folder)
    assert {each.asked.strip()[-5:] for each in samples} == {"here?", " one."}
    (found,) = strata(samples, "ROUGE_L")
    assert sum(found.values()) / 2 == pytest.approx(result["scores"]["ROUGE_L"])
    assert 'content="default-src' in (folder / "report.html").read_text()
    assert {json.loads(line)["key"] for line in lines} == {"talk-1", "talk-2"}
