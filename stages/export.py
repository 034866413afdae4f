"""Models in and out: from the reference's checkpoints, to what transformers and open_clip load.

python stages/export.py official=FILE recipe=clipcap_coco out=FOLDER [key=value ...]
    A checkpoint of the reference becomes an export: to be scored (evaluate.export=FOLDER), tuned
    (llm_tune.init_from=FOLDER), or captioned with (checkpoint=FOLDER).
python stages/export.py checkpoint=FOLDER out=FOLDER [key=value ...]
    An export, a phase or a run becomes llm/ (transformers), encoder/ (open_clip, where it was
    adapted) and st.safetensors with st.json. Of LaVIN, fold=text or fold=image puts the adapters
    for such rows into llm/, which any library then runs.
"""

from pipeline.config import Config
from pipeline.dist import World, on_main
from pipeline.explain.handover import explain_export
from pipeline.interchange import export
from pipeline.stage import run_stage


def main(config: Config, world: World) -> None:
    """Rank 0 does it; the others wait."""
    said = on_main(lambda: export(config), world)
    if world.is_main:
        print(said)


if __name__ == "__main__":
    run_stage(main, section="export", explain=explain_export)
