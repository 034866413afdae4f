"""A program for one or two ranks: trains a tiny LaVIN under ZeRO-3 and generates with it.

    deepspeed --num_gpus 2 tests/dist/lavin_program.py FOLDER

FOLDER holds `llm/` and `tight.json`; losses, gradient norms and answers of all rows are written to
`plain-N.json` there, and with activation checkpointing to `saving-N.json`. One half of the rows has
images, the other none; two ranks take one half each.
"""

import json
import sys
from pathlib import Path

import open_clip
import torch
from torch import Tensor

from pipeline import dist
from pipeline.config import Config, LavinConfig, LLMConfig, LLMTuneConfig, MMAdapterConfig
from pipeline.data.collate import LanguageBatch, to_device
from pipeline.dist import World, gather_json
from pipeline.ds_config import read_ds_config
from pipeline.engine import Engine
from pipeline.models import lavin
from pipeline.models.encoder import ImageEncoder
from pipeline.models.multimodal import IGNORE, IMAGE_SLOT
from pipeline.objectives import LanguageObjective, LanguageTask
from pipeline.phases import Segment, part_groups
from pipeline.zero import placement_for
from tests.models import tiny

STEPS = 4
TRAINED = ("encoder_adapters", "st", "adapters")


def tower() -> ImageEncoder:
    """Tiny, with the same random weights on every rank."""
    torch.manual_seed(0)
    visual = open_clip.transformer.VisionTransformer(
        image_size=16, patch_size=8, width=8, layers=2, heads=2, mlp_ratio=2.0, output_dim=6
    )
    return ImageEncoder(visual, 6)


def half(has_image: bool) -> LanguageBatch:
    """Two rows with an image each, or two without and an image that no row uses."""
    torch.manual_seed(5)
    images = torch.randn(2, 3, 16, 16)
    if has_image:
        slots = [IMAGE_SLOT] * 2
        ids = [[1, 5, *slots, 4, 9, 36], [1, 5, *slots, 7, 36, 0]]
    else:
        images, ids = torch.zeros(1, 3, 16, 16), [[1, 6, 8, 2, 36], [1, 6, 8, 3, 36]]
    input_ids = torch.tensor(ids)
    labels = input_ids.clone()
    labels[:, :4], labels[input_ids == 0] = IGNORE, IGNORE
    return LanguageBatch(
        images=images,
        features=None,
        image_rows=torch.tensor([0, 1] if has_image else [-1, -1]),
        input_ids=input_ids,
        attention_mask=(input_ids != 0).long(),
        labels=labels,
        weights=(labels != IGNORE).float(),
    )


def answers(model: lavin.Lavin, batch: LanguageBatch) -> Tensor:
    """Two tokens after each row."""
    return model.generate(
        images=batch.images,
        image_rows=batch.image_rows,
        input_ids=batch.input_ids[:, :5],
        attention_mask=batch.attention_mask[:, :5],
        max_new_tokens=2,
        eos_token_id=tiny.VOCAB,
        pad_token_id=0,
        synced_gpus=True,
    )


def train(folder: Path, world: World, *, saving: bool) -> dict[str, list[float]]:
    """Losses and gradient norms of each step, and the answers of this rank's rows.

    saving: activations are computed again in the backward pass.
    """
    phase = LLMTuneConfig(ds_config=str(folder / "tight.json"), lr=0.01, clip_norm=0.0)
    adapter = MMAdapterConfig(hidden=4, temperature=1.0, dropout=0.0)  # it would differ by rank
    cfg = Config(
        llm=LLMConfig(path=str(folder / "llm")),
        lavin=LavinConfig(adapter=adapter, image_layers=[1, 2], visual_hidden=4),
    )
    cfg.data.task, cfg.data.max_tokens = "scienceqa", 20
    placement = placement_for(read_ds_config("llm_tune", phase.ds_config), "fp32", world)
    model = lavin.build(
        cfg, dtype=torch.float32, placement=placement, with_encoder=True, encoder=tower()
    )
    if saving:
        model.llm.gradient_checkpointing_enable()
        model.encoder.visual.set_grad_checkpointing()
    segment = Segment(0, TRAINED, 0, STEPS, 1.0)
    groups = part_groups(lavin.parts(model), segment, phase)
    engine = Engine(LanguageTask(model), groups, phase, name="test", precision="fp32", world=world)
    objective = LanguageObjective(engine, world, torch.float32, align_weight=0.1)
    engine.train()
    halves = [half(True), half(False)]
    mine = halves if world.size == 1 else [halves[world.rank]]
    found: dict[str, list[float]] = {"losses": [], "norms": [], "answers": []}
    for _ in range(STEPS):
        share = objective.step(mine).share
        found["losses"].append(float(share))
        found["norms"].append(engine.step().grad_norm)
    for batch in mine:
        moved = to_device(batch, world.device, torch.float32)
        found["answers"] += answers(model, moved).flatten().tolist()
    engine.close()
    return found


def main() -> None:
    """Every rank trains, twice; the first writes."""
    folder = Path(next(each for each in sys.argv[1:] if not each.startswith("--local")))
    world = dist.start()
    for name, saving in (("plain", False), ("saving", True)):
        found = gather_json(train(folder, world, saving=saving), world)
        if world.is_main:
            (folder / f"{name}-{world.size}.json").write_text(json.dumps(found))
    dist.stop()


if __name__ == "__main__":
    main()
