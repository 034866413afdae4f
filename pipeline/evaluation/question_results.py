"""What an evaluation of questions leaves behind: the benchmark's results file, metrics, samples.

On rank 0 alone. Reads each record again for its problem; knows no model. Two records that are one
question are refused: the results file has one answer a pid, so one of the two would be lost.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from pipeline.answering import Answers
from pipeline.callbacks.samples import Example, sheet
from pipeline.config import Config
from pipeline.data.faults import ContentFault
from pipeline.data.plan import Plan, items_in_order
from pipeline.data.scienceqa_prompts import Problem
from pipeline.durable import write_json
from pipeline.errors import DataError
from pipeline.evaluation.loading import Scoring
from pipeline.evaluation.results import SAMPLES, output_folder
from pipeline.evaluation.scienceqa import Scores, parse_answer, score, write_results
from pipeline.models.families import family
from pipeline.splits import Split
from pipeline.tasks import choice_text, question_text, way_of_answering

log = logging.getLogger("pipeline")


@dataclass
class _Questions:
    """The questions of a split that can be read, by pid."""

    problems: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)  # of their records
    pictured: list[tuple[int, int]] = field(default_factory=list)  # (shard, record) with an image


def write_answers(scoring: Scoring, answers: Answers, measured: dict[str, Any]) -> dict[str, Any]:
    """Writes results.json, metrics.json and samples.png; returns what metrics.json holds.

    Args:
        scoring: what was asked, of which model.
        answers: of all ranks.
        measured: further entries of metrics.json (loss, what was skipped, the export).

    Raises:
        DataError: two records are the same question, or none could be read.
    """
    config, split = scoring.config, scoring.split
    asked = _questions(split, scoring.plan)
    predictions = _predictions(asked, answers)
    outputs = {pid: answers.texts[k] for pid, k in asked.keys.items() if k in answers.texts}
    scores = score(asked.problems, predictions)
    folder = output_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder / "results.json", scores, predictions, outputs or None)
    _samples(config, split, asked, predictions, outputs).save(folder / "samples.png")
    cut = set(answers.cut)
    lost = [pid for pid, index in predictions.items() if index < 0 and asked.keys[pid] in cut]
    result = {
        "split": config.evaluate.split,
        "records": len(asked.problems),
        **measured,
        "answers": way_of_answering(config),
        "tied": answers.tied,
        "texts_cut": len(cut),
        "unparsed_cut": len(lost),
        **answers.cost.as_dict(),
        "scores": _numbers(scores),
        "benchmark": scores.as_dict(),
        "table": "\n".join([scores.table(), *_remarks(config, asked, answers, lost, measured)]),
    }
    write_json(folder / "metrics.json", result)
    log.info(
        "evaluate      %d of %d right; answers that are no choice: %d, without an answer: %d",
        scores.average.correct,
        scores.average.count,
        scores.unparsed,
        scores.unanswered,
    )
    return result


def _questions(split: Split, plan: Plan) -> _Questions:
    reader, found, keys = split.reader, _Questions(), set[str]()
    for shard, record in items_in_order(plan):
        try:
            raw = reader.read(shard, record)
            Problem.of(raw.data)
        except ContentFault:
            continue  # counted when it was to be asked
        pid = str(raw.data.get("pid", raw.key))
        if pid in found.problems or raw.key in keys:
            raise DataError(
                f"{raw.shard}, {raw.key}: question {pid} is there twice, and only one answer to it "
                "can be scored; prepare the split without the other one"
            )
        found.problems[pid], found.keys[pid] = raw.data, raw.key
        keys.add(raw.key)
        if raw.image is not None:
            found.pictured.append((shard, record))
    if not found.problems:
        raise DataError(f"no record of {split.place} holds a question that can be read")
    return found


def _predictions(asked: _Questions, answers: Answers) -> dict[str, int]:
    """pid -> index, of the questions that were answered; what cannot be read is UNPARSED."""
    predictions = dict[str, int]()
    for pid, key in asked.keys.items():
        if key in answers.chosen:
            predictions[pid] = answers.chosen[key]
        elif key in answers.texts:
            choices = len(asked.problems[pid]["choices"])
            predictions[pid] = parse_answer(answers.texts[key], choices)
    return predictions


def _numbers(scores: Scores) -> dict[str, float]:
    """Every accuracy in percent that there is."""
    accuracy: dict[str, float | None] = scores.as_dict()["accuracy"]
    return {name: value for name, value in accuracy.items() if value is not None}


def _remarks(
    config: Config, asked: _Questions, answers: Answers, lost: list[str], measured: dict[str, Any]
) -> list[str]:
    """What a reader of the table should know besides; a line each."""
    limit = f"evaluate.max_new_tokens={config.evaluate.max_new_tokens}"
    unseen = 0 if family(config.family).sees_images(config) else len(asked.pictured)
    notes = {
        f"of them were cut at {limit}, before an answer: raise it": len(lost),
        "questions with two options equally likely: the first was taken": answers.tied,
        "questions have an image, which this model does not see": unseen,
        **{f"records skipped: {why}": n for why, n in sorted(measured["skipped"].items())},
    }
    return [f"{count} {what}" for what, count in notes.items() if count]


def _samples(
    config: Config,
    split: Split,
    asked: _Questions,
    predictions: dict[str, int],
    outputs: dict[str, str],
) -> Image.Image:
    """Questions with a picture: what was asked, given and right."""
    reader, examples = split.reader, []
    for shard, record in asked.pictured[:SAMPLES]:
        try:
            raw = reader.read(shard, record)
            image = reader.image(raw, draft_size=256)
        except ContentFault:
            continue
        pid, problem = str(raw.data.get("pid", raw.key)), Problem.of(raw.data)
        index = predictions.get(pid, -1)
        given = choice_text(problem, index) if index >= 0 else outputs.get(pid, "(no answer)")
        truth = choice_text(problem, problem.answer)
        examples.append(Example(image, given, truth, question_text(config, raw)))
    return sheet(examples)
