"""Answers a split's questions with a finished model and scores them: all ranks share the work.

How a model answers stands in `answering.py`, what is left on disk in `question_results.py`.
"""

import logging
import time
from typing import Any

from pipeline.answering import Answers, choose_options, generate_answers
from pipeline.config import Config
from pipeline.data.loader import Pass
from pipeline.data.plan import Plan
from pipeline.dist import World, on_main
from pipeline.evaluation.loading import (
    Loaded,
    chosen_export,
    load_for_scoring,
    rows_to_score,
    watched,
)
from pipeline.evaluation.question_results import write_answers
from pipeline.evaluation.results import output_folder
from pipeline.ownership import Ownership, owning
from pipeline.splits import Split, open_split
from pipeline.stopping import stoppable
from pipeline.tasks import check_answering, scored, way_of_answering
from pipeline.validation import language_metrics, skipped_over_ranks

log = logging.getLogger("pipeline")


def answer_questions(config: Config, world: World) -> dict[str, Any]:
    """Answers `evaluate.split` with the last phase's export; returns what metrics.json holds.

    Every rank calls it.

    Raises:
        ConfigError: no phase is finished, or the format explains before it answers and options are
            to be compared.
        DataError: two records are the same question.
        OwnerError: another job writes into the results' folder.
    """
    with owning(output_folder(config), world) as owner:
        return _answer_questions(config, owner, world)


def _answer_questions(config: Config, owner: Ownership, world: World) -> dict[str, Any]:
    check_answering(scored(config))
    settings = config.evaluate
    export = chosen_export(config, world)
    config = scored(config)
    split = open_split(config, settings.split)
    log.info("evaluate      %s on %s (%d questions)", export, settings.split, split.records)
    log.info("evaluate      answers: %s", way_of_answering(config))
    began = time.perf_counter()
    loaded = load_for_scoring(config, export, split, world)
    plan = split.in_order(settings.batch * world.size, settings.records)
    explained = _rows(config, loaded, split, plan, world, "all")
    loss = language_metrics(loaded.forward, explained(), world, loaded.dtype)["loss"]
    compares = settings.answers == "likelihood"
    asked = _rows(config, loaded, split, plan, world, "options" if compares else "none")
    answers = (_compare if compares else _generate)(config, loaded, asked, world).over_ranks(world)
    measured = {
        "export": str(export),
        "loss": loss,
        "skipped": dict(skipped_over_ranks(asked.faults, world)),
    }
    owner.check()
    result: dict[str, Any] = on_main(
        lambda: write_answers(config, split, plan, answers, measured), world
    )
    log.info("evaluate      %s", answers.cost)
    log.info("evaluate      took %.0f s", time.perf_counter() - began)
    return result


def _rows(
    config: Config, loaded: Loaded, split: Split, plan: Plan, world: World, kind: str
) -> Pass:
    rows = rows_to_score(config, loaded.built, split, plan, world, kind)
    return Pass(rows, config.data.workers)


def _compare(config: Config, loaded: Loaded, asked: Pass, world: World) -> Answers:
    return choose_options(
        loaded.built.model, stoppable(asked(), world), device=world.device, dtype=loaded.dtype
    )


def _generate(config: Config, loaded: Loaded, asked: Pass, world: World) -> Answers:
    return generate_answers(
        loaded.built.model,
        stoppable(watched(asked, "answers"), world),
        loaded.built.tokenizer,
        config.evaluate,
        device=world.device,
        dtype=loaded.dtype,
        synced=loaded.partitioned,
    )
