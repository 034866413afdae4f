"""Answers MME's questions with a finished model and scores them: all ranks share the work.

Each question is answered twice: by generating, which the benchmark's rule reads, and by whether Yes
or No is likelier, which needs no reading. Which model, and how it is asked, the recipe says; which
questions there are, the shards. What is left on disk stands in `mme_results.py`.
"""

import logging
import time
from collections.abc import Iterator
from typing import Any

import torch

from pipeline.answering import compared
from pipeline.captioning import continuations
from pipeline.config import Config
from pipeline.data.collate import LanguageBatch, to_device
from pipeline.data.conversation_rows import OPTIONS
from pipeline.data.loader import Pass
from pipeline.dist import World, gather_json, on_main
from pipeline.evaluation.finishing import output_folder
from pipeline.evaluation.loading import Scoring, open_for_scoring
from pipeline.evaluation.mme_files import GENERATED, LIKELIHOOD
from pipeline.evaluation.mme_results import write_mme
from pipeline.objectives import outputs_of
from pipeline.ownership import Ownership, owning

log = logging.getLogger("pipeline")


def answer_mme(config: Config, world: World) -> dict[str, Any]:
    """Answers the questions with the last phase's export; returns what metrics.json holds.

    Every rank calls it.

    Raises:
        ConfigError: no phase is finished.
        DataError: no question could be read.
        OwnerError: another job writes into the results' folder.
        Stopped: a stop was asked for meanwhile.
    """
    with owning(output_folder(config), world) as owner:
        return _answer_mme(config, owner, world)


def _answer_mme(config: Config, owner: Ownership, world: World) -> dict[str, Any]:
    began = time.perf_counter()
    scoring = open_for_scoring(config, world, "images of MME")
    asked = scoring.rows("none")
    generated = _over_ranks(_generated(scoring, asked), world)
    likelier = _over_ranks(_likelier(scoring), world)
    measured = scoring.measured(asked)
    said = {GENERATED: generated, LIKELIHOOD: likelier}
    owner.check()
    result: dict[str, Any] = on_main(lambda: write_mme(scoring, said, measured), world)
    log.info("evaluate      took %.0f s", time.perf_counter() - began)
    return result


def _generated(scoring: Scoring, asked: Pass) -> Iterator[dict[str, list[str]]]:
    for each in continuations(
        scoring.model,
        scoring.batches(asked, "answers"),
        scoring.loaded.built.tokenizer,
        scoring.config.evaluate,
        device=scoring.world.device,
        dtype=scoring.loaded.dtype,
        synced=scoring.loaded.partitioned,
    ):
        found = each.by_record().items()
        yield {key: [" ".join(text.split()) for text in texts] for key, texts in found}


@torch.no_grad()
def _likelier(scoring: Scoring) -> Iterator[dict[str, list[str]]]:
    """Yes or No; as many forward passes on every rank, dummies included."""
    for batch in scoring.batches(scoring.rows("options"), "yes or no"):
        moved = to_device(batch, scoring.world.device, scoring.loaded.dtype)
        assert isinstance(moved, LanguageBatch)
        out = outputs_of(scoring.model, moved)
        found: dict[str, list[str]] = {key: [] for key in moved.keys}
        if moved.keys:
            for owner, index, _ in compared(out, moved):
                found[moved.keys[owner]].append(OPTIONS[index] if index >= 0 else "")
        yield found


def _over_ranks(mine: Iterator[dict[str, list[str]]], world: World) -> dict[str, list[str]]:
    local = {key: texts for each in mine for key, texts in each.items()}
    return {key: texts for each in gather_json(local, world) for key, texts in each.items()}
