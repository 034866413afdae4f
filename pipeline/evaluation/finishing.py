"""Where an evaluation goes, and what every one of them ends with: metrics, TensorBoard, the report.

On rank 0 alone, after the task's own files are written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.callbacks.board import show_results
from pipeline.config import Config
from pipeline.durable import write_json
from pipeline.evaluation.loading import Scoring
from pipeline.evaluation.report import write_reports
from pipeline.recipe_values import unusual

SAMPLES, SHEET = 20, "samples.png"
COMMON_FILES = "metrics.json, samples.jsonl, samples.png and report.html"


def output_folder(config: Config) -> Path:
    """Where an evaluation of the recipe's split goes; of another task's, apart from its own."""
    settings = config.evaluate
    name = settings.split if settings.task is None else f"{settings.task}-{settings.split}"
    return Path(config.runs, config.name, "evaluate", name)


def finish_evaluation(
    scoring: Scoring, places: Mapping[str, tuple[int, int]], result: dict[str, Any]
) -> None:
    """Writes metrics.json, adds the scores to the run's TensorBoard, and writes the reports.

    In this order: what is looked at costs no scores. places: record key -> (shard, record).
    """
    config = scoring.config
    folder = output_folder(config)
    write_json(folder / "metrics.json", result)
    retrieval: dict[str, float] = result.get("retrieval") or {}
    scores = {"loss": result["loss"], **result["scores"], **retrieval}
    with Image.open(folder / SHEET) as samples:
        show_results(folder.parents[1], folder.name, unusual(config), scores, samples)
    write_reports(folder, scoring.split, places, config.evaluate.shown)
