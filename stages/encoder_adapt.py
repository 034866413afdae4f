"""Encoder adaptation: the image encoder learns in-domain features by a contrastive loss.

Trains: encoder and text towers of open_clip; ST and LLM take no part.
Takes over: base weights, or init_from=.
Leaves: the adapted encoder, in runs/<name>/encoder_adapt/export.

    deepspeed stages/encoder_adapt.py [recipe=NAME] [key=value ...]     (--plan: what it would do)
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
    return ensure(config, world, until="encoder_adapt") and run_phase(
        config, "encoder_adapt", world
    )


if __name__ == "__main__":
    run_stage(main, explain=partial(explain_phase, name="encoder_adapt"))
