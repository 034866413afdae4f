"""What an evaluation of questions leaves behind: the benchmark's results file, metrics, samples.

On rank 0 alone. Reads each record again for its problem; knows no model. Two records that are one
question are refused: the results file has one answer a pid, so one of the two would be lost.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from pipeline.answering import Answers
from pipeline.callbacks.samples import Example, sheet
from pipeline.config import Config
from pipeline.data.faults import ContentFault
from pipeline.data.plan import Plan, items_in_order
from pipeline.data.scienceqa_prompts import Problem
from pipeline.errors import DataError
from pipeline.evaluation.finishing import SAMPLES, SHEET, finish_evaluation, output_folder
from pipeline.evaluation.loading import Scoring
from pipeline.evaluation.samples import Sample, write_samples
from pipeline.evaluation.scienceqa import (
    UNPARSED,
    Scores,
    groups_of,
    parse_answer,
    score,
    write_results,
)
from pipeline.models.families import family
from pipeline.splits import Split
from pipeline.tasks import choice_text, question_text, way_of_answering

log = logging.getLogger("pipeline")


@dataclass
class _Questions:
    """The questions of a split that can be read, by pid."""

    problems: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)  # of their records
    places: dict[str, tuple[int, int]] = field(default_factory=dict)  # (shard, record)
    pictured: list[str] = field(default_factory=list)  # those with an image
    left_out: Mapping[str, int] = field(default_factory=dict)  # when the shards were made, by why


def write_answers(scoring: Scoring, answers: Answers, measured: dict[str, Any]) -> dict[str, Any]:
    """Writes results.json, samples, metrics.json and the report; returns what metrics.json holds.

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
    _sheet(config, split, asked, predictions, outputs).save(folder / SHEET)
    write_samples(folder, _samples(asked, predictions, outputs))
    cut = set(answers.cut)
    lost = [pid for pid, index in predictions.items() if index < 0 and asked.keys[pid] in cut]
    result = {
        "split": config.evaluate.split,
        "records": len(asked.problems),
        "left_out": dict(asked.left_out),
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
    finish_evaluation(scoring, {asked.keys[pid]: p for pid, p in asked.places.items()}, result)
    log.info(
        "evaluate      %d of %d right; answers that are no choice: %d, without an answer: %d",
        scores.average.correct,
        scores.average.count,
        scores.unparsed,
        scores.unanswered,
    )
    return result


def _questions(split: Split, plan: Plan) -> _Questions:
    left_out = sum((Counter(each.skipped) for each in split.manifests), Counter[str]())
    reader, found, keys = split.reader, _Questions(left_out=left_out), set[str]()
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
        found.places[pid] = (shard, record)
        if raw.image is not None:
            found.pictured.append(pid)
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
    uncaptioned = 0
    if config.scienceqa.use_caption:
        pictured = [each for each in asked.problems.values() if each.get("image")]
        uncaptioned = sum(not each.get("caption") for each in pictured)
    unseen = 0 if family(config.family).sees_images(config) else len(asked.pictured)
    notes = {
        f"of them were cut at {limit}, before an answer: raise it": len(lost),
        "questions with two options equally likely: the first was taken": answers.tied,
        "questions have an image, which this model does not see": unseen,
        "questions have an image without the caption that scienceqa.use_caption shows": uncaptioned,
        **{f"questions are not in the shards: {w}": n for w, n in sorted(asked.left_out.items())},
        **{f"records skipped: {why}": n for why, n in sorted(measured["skipped"].items())},
    }
    return [f"{count} {what}" for what, count in notes.items() if count]


def _samples(
    asked: _Questions, predictions: dict[str, int], outputs: dict[str, str]
) -> Iterator[Sample]:
    for pid, problem in asked.problems.items():
        known, index = Problem.of(problem), predictions.get(pid, UNPARSED)
        chosen = choice_text(known, index) if 0 <= index < len(known.choices) else ""
        said = [text for text in (outputs.get(pid, ""), chosen) if text]
        groups = groups_of(problem)
        right = 100.0 * (index == known.answer)
        yield Sample(
            key=asked.keys[pid],
            predicted="\n".join(said) or "(no answer)",
            truth=(choice_text(known, known.answer),),
            scores=dict.fromkeys(("Avg", *groups), right),
            asked="\n".join(filter(None, (known.question, problem.get("hint") or ""))),
            groups=tuple(groups),
        )


def _sheet(
    config: Config,
    split: Split,
    asked: _Questions,
    predictions: dict[str, int],
    outputs: dict[str, str],
) -> Image.Image:
    """Questions with a picture: what was asked, given and right."""
    reader, examples = split.reader, []
    for pid in asked.pictured[:SAMPLES]:
        try:
            raw = reader.read(*asked.places[pid])
            image = reader.image(raw, draft_size=256)
        except ContentFault:
            continue
        problem = Problem.of(raw.data)
        index = predictions.get(pid, -1)
        given = choice_text(problem, index) if index >= 0 else outputs.get(pid, "(no answer)")
        truth = choice_text(problem, problem.answer)
        examples.append(Example(image, given, truth, question_text(config, raw)))
    return sheet(examples)
