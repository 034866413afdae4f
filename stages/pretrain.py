"""Makes a small CLIP and a small LM with its tokenizer from scratch, for whoever has no weights.

Leaves: pretrain.out/clip (open_clip's format) and pretrain.out/llm (transformers' format).

    deepspeed stages/pretrain.py [recipe=NAME] [key=value ...]
"""

from pipeline.config import Config
from pipeline.dist import World
from pipeline.explain.stages import explain_pretrain
from pipeline.prerequisites import ensure
from pipeline.pretrain import pretrain
from pipeline.stage import run_stage


def main(config: Config, world: World) -> bool:
    """What every rank does; False: something was stopped, and the same command goes on."""
    return ensure(config, world, until="pretrain") and pretrain(config, world)


if __name__ == "__main__":
    run_stage(main, explain=explain_pretrain)
