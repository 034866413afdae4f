"""Counts by one hook what three ways of answering take of the LLM, on all ranks, under any ZeRO.

The options' likelihood, 64 tokens with a KV cache, and the same 64 tokens without one.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from pipeline.answering import choose_options
from pipeline.config import Config
from pipeline.data.collate import LanguageBatch, to_device
from pipeline.dist import World, sum_over_ranks
from pipeline.evaluation.cost import GENERATED
from pipeline.evaluation.loading import open_for_scoring
from pipeline.models.counting import counting
from pipeline.models.multimodal import MultimodalLM


def count_costs(config: Config, world: World, file: Path) -> None:
    """Writes {way: [passes, positions], ...} over all ranks; the recipe's batch must be 1."""
    scoring = open_for_scoring(config, world, "questions")
    loaded, model, rows = scoring.loaded, scoring.model, scoring.rows
    chosen = choose_options(model, rows("options")(), device=world.device, dtype=loaded.dtype)
    taken = {"likelihood": [chosen.cost.passes, chosen.cost.positions]}
    taken |= {"cached": [0, 0], "uncached": [0, 0]}
    with counting(model.llm) as counter:
        for batch in rows("none")():
            moved = to_device(batch, world.device, loaded.dtype)
            assert isinstance(moved, LanguageBatch) and len(moved.keys) == 1
            said = generate(model, moved, synced=loaded.partitioned)
            taken["cached"] = [a + b for a, b in zip(taken["cached"], counter.take(), strict=True)]
            for step in range(GENERATED):
                assert next_token(model, moved, said[:, :step]) == int(said[0, step])
            taken["uncached"] = [
                a + b for a, b in zip(taken["uncached"], counter.take(), strict=True)
            ]
    summed = {way: sum_over_ranks(counts, world) for way, counts in taken.items()}
    if world.is_main:
        file.write_text(json.dumps({**summed, "questions": scoring.plan.records}))


def generate(model: MultimodalLM, batch: LanguageBatch, *, synced: bool) -> Tensor:
    """(1, 64): greedy, whether or not EOS is among them."""
    return model.generate(
        images=batch.images,
        features=batch.features,
        image_rows=batch.image_rows,
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        max_new_tokens=GENERATED,
        eos_token_id=-1,  # no token ends it
        pad_token_id=0,
        synced_gpus=synced,
    )


@torch.no_grad()
def next_token(model: MultimodalLM, batch: LanguageBatch, said: Tensor) -> int:
    """The likeliest token behind the prompt and what was said, in a pass over all of it."""
    behind = said.new_zeros(1, 1)  # the place that is predicted
    ids = torch.cat([batch.input_ids, said, behind], 1)
    seen = torch.cat([batch.attention_mask, torch.ones_like(said), torch.zeros_like(behind)], 1)
    labels = torch.full_like(ids, -100)
    labels[:, -1] = 0
    out = model(
        images=batch.images,
        features=batch.features,
        image_rows=batch.image_rows,
        input_ids=ids,
        attention_mask=seen,
        labels=labels,
        weights=torch.ones(ids.shape),
    )
    return int(out.logits.argmax())
