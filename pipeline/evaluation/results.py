"""What an evaluation of captions leaves behind: predictions, a sheet of samples, scores.

On rank 0 alone. Predictions are written before anything is scored, so that a score that fails costs
no captions. Knows files and scores; no model.
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.callbacks.probes import References
from pipeline.callbacks.samples import sheet
from pipeline.config import EvaluateConfig
from pipeline.data.plan import items_in_order
from pipeline.errors import DataError
from pipeline.evaluation.captions import Scored, mean_of, score_all, spice_each
from pipeline.evaluation.finishing import SAMPLES, SHEET, finish_evaluation, output_folder
from pipeline.evaluation.loading import Scoring
from pipeline.evaluation.samples import Sample, write_samples
from pipeline.evaluation.spice import how_to_get_spice, spice_models
from pipeline.splits import Split
from pipeline.talks import TALKS
from pipeline.tasks import question_text, true_texts

log = logging.getLogger("pipeline")

# Of single captions; the first one sorts them.
ORDERING = ("CIDEr", "ROUGE_L", "CIDEr_quick", "SPICE")


def announce_spice(settings: EvaluateConfig) -> None:
    """Says, before the work begins, that SPICE will be missing and how to get it."""
    if "spice" in settings.metrics and spice_models(settings.spice_models) is None:
        log.info("evaluate      %s", how_to_get_spice(settings.spice_models))


def write_results(
    scoring: Scoring, predictions: Mapping[str, str], measured: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes everything into `output_folder`; returns what metrics.json holds.

    Args:
        scoring: what was captioned, by which model.
        predictions: record key -> caption.
        measured: further entries of metrics.json (loss, retrieval, the export).

    Raises:
        DataError: no record could be captioned.
    """
    config, split = scoring.config, scoring.split
    items = items_in_order(scoring.plan)
    texts, asked = partial(true_texts, config), partial(question_text, config)
    references = References(split.reader, items, texts, asked)
    truth = references.captions()
    scored = {key: text for key, text in predictions.items() if key in truth}
    if not scored:
        raise DataError(f"no record of {split.place} could be captioned; check its images")
    folder = output_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    _write_predictions(folder / "predictions.jsonl", split, items, scored)
    sheet(references.examples(scored, SAMPLES)).save(folder / SHEET)
    references_of = {key: truth[key] for key in scored}
    found = _scores(config.evaluate, scored, references_of)
    places = _places(split, items)
    asked_of = references.questions() if config.data.task in TALKS else {}
    write_samples(folder, _samples(scored, references_of, found, asked_of))
    result = {
        "split": config.evaluate.split,
        "records": len(scored),
        "records_skipped": len(items) - len(scored),
        "beams": config.evaluate.beams,
        **measured,
        "perplexity": math.exp(min(measured["loss"], 700.0)),
        "scores": found.totals,
    }
    finish_evaluation(scoring, places, result)
    return result


def _places(split: Split, items: Sequence[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    keys = split.reader.keys(np.array(items))
    return dict(zip(keys, items, strict=True))


def _samples(
    captions: Mapping[str, str],
    truth: Mapping[str, Sequence[str]],
    found: Scored[str],
    asked: Mapping[str, str],
) -> Iterator[Sample]:
    order = {name: found.each[name] for name in ORDERING if name in found.each}
    for key, text in captions.items():
        scores = {name: of[key] for name, of in order.items() if key in of}
        counts = {name: of[key] for name, of in found.counts.items()}
        yield Sample(key, text, tuple(truth[key]), scores, asked.get(key, ""), counts=counts)


def _write_predictions(
    path: Path, split: Split, items: Sequence[tuple[int, int]], captions: Mapping[str, str]
) -> None:
    """One record of COCO's results format a line, in the order of the split."""
    reader, writing = split.reader, path.with_name(f".{path.name}.tmp")
    with writing.open("w", encoding="utf-8") as file:
        for shard, record in items:
            key = reader.keys(np.array([[shard, record]]))[0]
            if key in captions:
                image_id = reader.read(shard, record).data.get("image_id", key)
                line = {"image_id": image_id, "caption": captions[key], "key": key}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    writing.replace(path)


def _scores(
    settings: EvaluateConfig, captions: Mapping[str, str], truth: Mapping[str, Sequence[str]]
) -> Scored[str]:
    """All scores; SPICE only where it can be had, because it must never cost the others."""
    scores = score_all(captions, truth, settings.metrics)
    models = spice_models(settings.spice_models)
    if "spice" in settings.metrics and models is not None:
        try:
            scores.each["SPICE"] = spice_each(captions, truth, models)
            scores.totals["SPICE"] = mean_of(scores.each["SPICE"])
        except DataError as error:
            log.warning("evaluate      %s", error)
    return scores
