"""A program for several ranks: trains small LLaMA-Adapters in ZeRO-3 partitions, then generates.

    deepspeed --num_gpus 2 tests/dist/llama_adapter_program.py LLM_FOLDER DS_CONFIG OUT.json

A step has two micro-batches, one with images and one of text alone: on two ranks each has one.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline import dist
from pipeline.config import Config, LlamaAdapterConfig, LLMConfig, LLMTuneConfig, STConfig
from pipeline.data.collate import LanguageBatch
from pipeline.dist import World
from pipeline.ds_config import read_ds_config
from pipeline.engine import Engine
from pipeline.models import llama_adapter
from pipeline.objectives import LanguageObjective, LanguageTask
from pipeline.phases import Segment, part_groups
from pipeline.zero import placement_for

WIDTH, EOS, STEPS = 6, 36, 4
VERSIONS = {
    "v1": LlamaAdapterConfig(layers=2, prompt_length=3),
    "v2": LlamaAdapterConfig(layers=1, prompt_length=3, early_layers=1, bias_scale=True),
}
PARTS = {
    "v1": ("st", "prompts"),
    "v2": ("st", "early", "prompts", "affine", "norms"),
}


def main() -> None:
    """Both versions, with and without recomputed activations."""
    folder, ds_config, out = (each for each in sys.argv[1:] if not each.startswith("--local"))
    world = dist.start()
    torch.set_num_threads(1)
    results = {
        f"{version}{'-saving' if saving else ''}": run(version, saving, folder, ds_config, world)
        for version in VERSIONS
        for saving in (False, True)
    }
    if world.is_main:
        Path(out).write_text(json.dumps(results))
    dist.stop()


def run(version: str, saving: bool, folder: str, ds_config: str, world: World) -> dict[str, Any]:
    """Losses and gradient norms of a few steps, what trained, and the tokens of each prompt."""
    chosen = VERSIONS[version]
    st = STConfig(prefix_length=2 if chosen.early_layers else 1, hidden=8)
    cfg = Config(llm=LLMConfig(path=folder), st=st, llama_adapter=chosen)
    cfg.data.max_tokens = cfg.evaluate.max_new_tokens = 20
    phase = LLMTuneConfig(ds_config=ds_config, lr=1e-2)
    loaded = read_ds_config("llm_tune", phase.ds_config)
    model = llama_adapter.build(
        cfg,
        dtype=torch.float32,
        placement=placement_for(loaded, "fp32", world),
        with_encoder=False,
        feature_width=WIDTH,
    )
    if saving:
        model.llm.activation_checkpointing_enable()
    groups = part_groups(
        llama_adapter.parts(model), Segment(0, PARTS[version], 0, STEPS, 1.0), phase
    )
    task = LanguageTask(model)
    engine = Engine(task, groups, phase, name="llm_tune", precision="fp32", world=world)
    objective = LanguageObjective(engine, world, torch.float32, align_weight=0.1)
    mine = [images(), text()][world.rank :: world.size]
    losses, norms = [], []
    for _ in range(STEPS):
        engine.train()
        share = objective.step(mine).share
        losses.append(dist.sum_over_ranks([float(share)], world)[0])
        norms.append(engine.step().grad_norm)
    tokens = [generate(model, each, synced=engine.stage == 3) for each in mine]
    trained = {name: list(each.shape) for name, each in engine.trained_tensors().items()}
    made = [row for rank in dist.gather_json(tokens, world) for rows in rank for row in rows]
    engine.close()
    return {"losses": losses, "norms": norms, "trained": trained, "tokens": made}


def images() -> LanguageBatch:
    """Two images, three rows, one of them without an image."""
    ids = torch.tensor([[7, 4, 9, EOS], [3, 7, EOS, 0], [5, 8, 2, EOS]])
    return batch(ids, features=2, rows=[1, 0, -1])


def text() -> LanguageBatch:
    """No row has an image; the one that is there is the data's dummy for partitioned ranks."""
    return batch(torch.tensor([[6, 11, EOS], [9, 2, EOS]]), features=1, rows=[-1, -1])


def batch(ids: torch.Tensor, *, features: int, rows: list[int]) -> LanguageBatch:
    labels = ids.where(ids > 0, -100)
    labels[:, 0] = -100
    return LanguageBatch(
        images=None,
        features=torch.randn(features, WIDTH, generator=torch.Generator().manual_seed(features)),
        image_rows=torch.tensor(rows),
        input_ids=ids,
        attention_mask=(ids > 0).long(),
        labels=labels,
        weights=(labels > 0).float(),
    )


def generate(model: Any, given: LanguageBatch, *, synced: bool) -> list[list[int]]:
    """Greedy tokens after the first two tokens of each row, padded to one length."""
    out = model.generate(
        features=given.features,
        image_rows=given.image_rows,
        input_ids=given.input_ids[:, :2],
        attention_mask=given.attention_mask[:, :2],
        max_new_tokens=5,
        eos_token_id=EOS,
        pad_token_id=0,
        synced_gpus=synced,
    )
    padded = torch.zeros(len(out), 5, dtype=torch.long)
    padded[:, : out.shape[1]] = out
    rows: list[list[int]] = padded.tolist()
    return rows


if __name__ == "__main__":
    main()
