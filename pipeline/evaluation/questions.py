"""Answers a split's questions with a finished model and scores them: all ranks share the work.

How a model answers stands in `answering.py`, what is left on disk in `question_results.py`.
"""

import logging
import time
from typing import Any

from pipeline.answering import Answers, choose_options, generate_answers
from pipeline.config import Config
from pipeline.data.loader import Pass
from pipeline.dist import World, on_main
from pipeline.evaluation.finishing import output_folder
from pipeline.evaluation.loading import Scoring, open_for_scoring
from pipeline.evaluation.question_results import write_answers
from pipeline.ownership import Ownership, owning
from pipeline.tasks import check_answering, scored, way_of_answering

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
    began = time.perf_counter()
    log.info("evaluate      answers: %s", way_of_answering(scored(config)))
    scoring = open_for_scoring(config, world, "questions")
    compares = scoring.config.evaluate.answers == "likelihood"
    asked = scoring.rows("options" if compares else "none")
    answers = (_compare if compares else _generate)(scoring, asked).over_ranks(world)
    measured = scoring.measured(asked)
    owner.check()
    result: dict[str, Any] = on_main(lambda: write_answers(scoring, answers, measured), world)
    log.info("evaluate      %s", answers.cost)
    log.info("evaluate      took %.0f s", time.perf_counter() - began)
    return result


def _compare(scoring: Scoring, asked: Pass) -> Answers:
    return choose_options(
        scoring.model,
        scoring.batches(asked, "questions"),
        device=scoring.world.device,
        dtype=scoring.loaded.dtype,
    )


def _generate(scoring: Scoring, asked: Pass) -> Answers:
    return generate_answers(
        scoring.model,
        scoring.batches(asked, "answers"),
        scoring.loaded.built.tokenizer,
        scoring.config.evaluate,
        device=scoring.world.device,
        dtype=scoring.loaded.dtype,
        synced=scoring.loaded.partitioned,
    )
