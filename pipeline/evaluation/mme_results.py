"""What an evaluation on MME leaves behind: the benchmark's result files, metrics, samples.

On rank 0 alone. Reads each record again for its questions; knows no model. Images are in the order
of their names, as in the benchmark's own files, whatever order the shards have.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.callbacks.samples import Example, sheet
from pipeline.data.conversation_rows import questions_of
from pipeline.data.faults import ContentFault
from pipeline.data.plan import Plan, items_in_order
from pipeline.data.reader import RawRecord
from pipeline.errors import DataError
from pipeline.evaluation.finishing import SAMPLES, SHEET, finish_evaluation, output_folder
from pipeline.evaluation.loading import Scoring
from pipeline.evaluation.mme import SUBTASKS, Answer, Scores, score, worth
from pipeline.evaluation.mme_files import GENERATED, LIKELIHOOD, write_results
from pipeline.evaluation.samples import Sample, write_samples
from pipeline.splits import Split
from pipeline.talks import MME

Texts = Mapping[str, list[str]]  # record key -> what was said to its questions, in order
Found = tuple[tuple[int, int], RawRecord]  # (shard, record), and what is there but the image


def write_mme(
    scoring: Scoring, said: Mapping[str, Texts], measured: dict[str, Any]
) -> dict[str, Any]:
    """Writes result files of both ways of answering, samples, metrics.json and the report.

    Args:
        scoring: what was asked, of which model.
        said: GENERATED and LIKELIHOOD, each with what was said to every record's questions.
        measured: further entries of metrics.json (loss, what was skipped, the export).

    Returns:
        What metrics.json holds; `scores` are those of generated answers.

    Raises:
        DataError: no question could be read.
    """
    config, split = scoring.config, scoring.split
    records = sorted(_records(split, scoring.plan), key=lambda each: str(each[1].data["image_id"]))
    if not records:
        raise DataError(f"no record of {split.place} holds questions of MME that can be read")
    folder = output_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    scores = {}
    for way, texts in said.items():
        answers = _answers([raw for _, raw in records], texts)
        write_results(folder / way, answers)
        scores[way] = score(answers)
    _sheet(split, records, said[GENERATED], folder / SHEET)
    write_samples(folder, _samples([raw for _, raw in records], said[GENERATED]))
    result = {
        "split": config.evaluate.split,
        "task": MME,
        "records": len(records),
        **measured,
        "template": config.instruct.template,
        "max_new_tokens": config.evaluate.max_new_tokens,
        "scores": scores[GENERATED].numbers(),
        "generated": scores[GENERATED].as_dict(),
        "likelihood": scores[LIKELIHOOD].as_dict(),
        "table": _table(scores, measured),
    }
    places = {raw.key: place for place, raw in records}
    finish_evaluation(scoring, places, result)
    return result


def _records(split: Split, plan: Plan) -> Iterator[Found]:
    """What holds questions, with its place; the rest was counted when it was to be asked."""
    reader = split.reader
    for shard, record in items_in_order(plan):
        try:
            raw = reader.read(shard, record)
            questions_of(raw.data)
        except ContentFault:
            continue
        yield (shard, record), replace(raw, image=None)


def _answers(records: list[RawRecord], texts: Texts) -> dict[str, list[Answer]]:
    """Subtask -> answers; a question that was not answered has an empty one, which is wrong."""
    found: dict[str, list[Answer]] = {name: [] for name in SUBTASKS}
    for raw in records:
        asked = questions_of(raw.data)
        given = texts.get(raw.key) or [""] * len(asked)
        found.setdefault(raw.data["subtask"], []).extend(
            Answer(str(raw.data["image_id"]), each.question, each.answer or "", text)
            for each, text in zip(asked, given, strict=True)
        )
    return {name: each for name, each in found.items() if each}


def _table(scores: Mapping[str, Scores], measured: dict[str, Any]) -> str:
    skipped = (f"{n} images skipped: {why}" for why, n in sorted(measured["skipped"].items()))
    return "\n".join(
        [
            "Generated answers, read by the benchmark's rule",
            scores[GENERATED].table(),
            "",
            "Yes against No by likelihood",
            scores[LIKELIHOOD].table(),
            *skipped,
        ]
    )


def _samples(records: list[RawRecord], texts: Texts) -> Iterator[Sample]:
    """An image with all its questions is a sample: it is what accuracy+ counts."""
    for raw in records:
        asked = questions_of(raw.data)
        given = texts.get(raw.key) or [""] * len(asked)
        subtask = str(raw.data["subtask"])
        right = [(each.answer or "", text) for each, text in zip(asked, given, strict=True)]
        yield Sample(
            key=raw.key,
            predicted="\n".join(text or "-" for text in given),
            truth=("\n".join(each.answer or "" for each in asked),),
            scores={subtask: worth(right)},
            asked="\n".join(each.question for each in asked),
            groups=(subtask,),
        )


def _sheet(split: Split, records: list[Found], texts: Texts, path: Path) -> None:
    """The first images with their first question, what was said and what is right."""
    reader, examples = split.reader, []
    for place, raw in records[:SAMPLES]:
        try:
            image = reader.image(reader.read(*place), draft_size=256)
        except ContentFault:
            continue
        first, text = questions_of(raw.data)[0], texts.get(raw.key, [""])[0]
        examples.append(Example(image, text, first.answer or "", first.question))
    sheet(examples).save(path)
