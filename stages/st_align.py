"""ST alignment: the ST alone learns to speak the LLM's language.

Trains: the ST; encoder and LLM are frozen.
Takes over: the adapted encoder.
Leaves: encoder and ST, in runs/<name>/st_align/export.

    deepspeed stages/st_align.py [recipe=NAME] [key=value ...]     (--plan: what it would do)
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
    return ensure(config, world, until="st_align") and run_phase(config, "st_align", world)


if __name__ == "__main__":
    run_stage(main, explain=partial(explain_phase, name="st_align"))
