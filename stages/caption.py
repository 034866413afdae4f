"""Captions one's own images; all ranks share the work.

Takes: an export, a phase's folder or a run's, which bring their recipe along.
Leaves: captions.jsonl and captions.html in out=, or in runs/<name>/captions/<name of the folder>.

    python stages/caption.py checkpoint=runs/quickstart images=FOLDER [out=FOLDER] [key=value ...]
"""

from pipeline.config import Config
from pipeline.dist import World
from pipeline.evaluation.own_images import caption_images
from pipeline.explain.handover import explain_caption
from pipeline.stage import run_stage


def main(config: Config, world: World) -> None:
    """What every rank does."""
    said = caption_images(config, world)
    if world.is_main:
        print(said)


if __name__ == "__main__":
    run_stage(main, section="caption", explain=explain_caption)
