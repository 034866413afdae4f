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


def main(config: Config, world: World) -> None:
    """What every rank does."""
    if ensure(config, world, until="pretrain"):
        pretrain(config, world)


if __name__ == "__main__":
    run_stage(main, explain=explain_pretrain)
