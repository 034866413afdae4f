"""A program for several ranks: runs lists of phases in one launch, as the stages would.

    deepspeed --num_gpus 2 tests/dist/phases_program.py PLAN.json

PLAN.json is a list of [phase, [recipe arguments ...]]; `prepare`, `pretrain` and `evaluate` are
phases too, and `costs`, which leaves PLAN.costs-NAME.json of each run's name.
"""

import json
import sys
from pathlib import Path

from pipeline import dist
from pipeline.evaluation.mme_runner import answer_mme
from pipeline.evaluation.questions import answer_questions
from pipeline.evaluation.runner import evaluate
from pipeline.prerequisites import make_shards
from pipeline.pretrain import pretrain
from pipeline.recipe import load_recipe
from pipeline.run import run_phase
from pipeline.stage import configure_logging
from pipeline.talks import MME
from pipeline.tasks import QUESTIONS, scored
from tests.dist.costs import count_costs


def main() -> None:
    """Every rank runs the whole plan."""
    arguments = [each for each in sys.argv[1:] if not each.startswith("--local")]
    world = dist.start()
    configure_logging(speaks=world.is_main)
    for phase, overrides in json.loads(Path(arguments[0]).read_text()):
        config = load_recipe(overrides)
        if phase == "prepare":
            make_shards(config, world)
        elif phase == "pretrain":
            pretrain(config, world)
        elif phase == "evaluate":
            ways = {QUESTIONS: answer_questions, MME: answer_mme}
            ways.get(scored(config).data.task, evaluate)(config, world)
        elif phase == "costs":
            count_costs(config, world, Path(arguments[0]).with_suffix(f".costs-{config.name}.json"))
        else:
            run_phase(config, phase, world)
    dist.stop()


if __name__ == "__main__":
    main()
