"""Captions a split with a finished model and scores it: all ranks share the work.

How the model is loaded stands in `loading.py`, what is left on disk in `results.py`.
"""

import logging
import time
from typing import Any

from pipeline.assemble import image_text_model
from pipeline.captioning import caption_batches
from pipeline.config import Config
from pipeline.data.loader import Pass
from pipeline.dist import World, gather_json, on_main
from pipeline.evaluation.captions import check_metrics
from pipeline.evaluation.finishing import output_folder
from pipeline.evaluation.loading import Scoring, open_for_scoring
from pipeline.evaluation.results import announce_spice, write_results
from pipeline.evaluation.retrieval import recall_at_k
from pipeline.export_files import ExportTensors, read_export
from pipeline.objectives import ContrastiveTask
from pipeline.ownership import Ownership, owning
from pipeline.run import export_folder
from pipeline.splits import pair_dataset, share_of
from pipeline.tasks import CAPTIONS
from pipeline.validation import retrieval_features

log = logging.getLogger("pipeline")


def evaluate(config: Config, world: World) -> dict[str, Any]:
    """Scores `evaluate.split` with the last phase's export; returns what metrics.json holds.

    Every rank calls it. Raises ConfigError when no phase is finished or Java is missing, OwnerError
    where another job writes into the results' folder.
    """
    with owning(output_folder(config), world) as owner:
        return _evaluate(config, owner, world)


def _evaluate(config: Config, owner: Ownership, world: World) -> dict[str, Any]:
    began = time.perf_counter()
    check_metrics(config.evaluate.metrics)
    announce_spice(config.evaluate)
    scoring = open_for_scoring(config, world, "records")
    prompts = scoring.rows("none")
    predictions = _captions(scoring, prompts)
    measured = scoring.measured(prompts) | {"retrieval": _retrieval(scoring)}
    owner.check()
    result: dict[str, Any] = on_main(lambda: write_results(scoring, predictions, measured), world)
    log.info("evaluate      took %.0f s", time.perf_counter() - began)
    return result


def _captions(scoring: Scoring, prompts: Pass) -> dict[str, str]:
    """Record key -> caption, over all ranks."""
    world = scoring.world
    local = caption_batches(
        scoring.model,
        scoring.batches(prompts, "captions"),
        scoring.loaded.built.tokenizer,
        scoring.config.evaluate,
        device=world.device,
        dtype=scoring.loaded.dtype,
        synced=scoring.loaded.partitioned,
    )
    return {key: text for each in gather_json(local, world) for key, text in each.items()}


def _retrieval(scoring: Scoring) -> dict[str, float]:
    """Recall of the model's own image tower and, where encoder_adapt was run, its text tower."""
    config, export, world = scoring.config, scoring.export, scoring.world
    dtype = scoring.loaded.dtype
    if config.data.task != CAPTIONS:
        return {}
    tensors = ExportTensors(export)
    named = config.evaluate.export is not None
    if named and any(name.startswith("encoder.") for name in tensors):
        log.info("evaluate      no retrieval: %s has no text tower for its encoder", export)
        return {}
    exports = [tensors]
    adapted = export_folder(config, "encoder_adapt")
    if not named and config.encoder_adapt.enabled and read_export(adapted):
        exports.insert(0, ExportTensors(adapted))
    clip = image_text_model(config, *exports)
    task = ContrastiveTask(clip.model).to(world.device, dtype).eval()
    share = share_of(world, config.evaluate.batch)
    pairs = pair_dataset(config, scoring.split, scoring.plan, clip, share, captions="all")
    loaded = Pass(pairs, config.data.workers)()
    image, text, text_image, _ = retrieval_features(task, loaded, world, dtype)
    return recall_at_k(image, text, text_image)
