"""Models in and out: from the reference's checkpoints, to what transformers and open_clip load.

python stages/export.py official=FILE recipe=clipcap_coco out=FOLDER [key=value ...]
    A checkpoint of the reference becomes an export: to be scored (evaluate.export=FOLDER), tuned
    (llm_tune.init_from=FOLDER), or captioned with (checkpoint=FOLDER).
python stages/export.py checkpoint=FOLDER out=FOLDER [key=value ...]
    An export, a phase or a run becomes llm/ (transformers; of LaVIN llm-text/ and llm-image/, its
    adapters merged for rows of either kind), encoder/ (open_clip, where it was adapted),
    st.safetensors with st.json, adapters.safetensors (what cannot be merged) and README.md, the
    model card. Needs neither a GPU nor DeepSpeed's launcher.
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
