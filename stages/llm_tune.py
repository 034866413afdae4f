"""LLM tuning: ST and LLM learn the task, in segments.

Trains: the ST and the LLM, as the recipe's segments say; the encoder is frozen.
Takes over: encoder and ST.
Leaves: encoder, ST and LLM, in runs/<name>/llm_tune/export.

    deepspeed stages/llm_tune.py [recipe=NAME] [key=value ...]     (--plan: what it would do)
"""

from functools import partial

from pipeline.config import Config
from pipeline.dist import World
from pipeline.explain.stages import explain_phase
from pipeline.prerequisites import ensure
from pipeline.run import run_phase
from pipeline.stage import run_stage


def main(config: Config, world: World) -> bool:
    """What every rank does; False: something was stopped, and the same command goes on."""
    return ensure(config, world, until="llm_tune") and run_phase(config, "llm_tune", world)


if __name__ == "__main__":
    run_stage(main, explain=partial(explain_phase, name="llm_tune"))
