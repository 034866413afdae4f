"""The tiny recipe ready to be scored without training: shards, random weights, and a checkpoint as
the reference saves it. Its captions are nonsense, but another nonsense for each image.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import GPT2LMHeadModel

from pipeline.config import ScratchConfig
from pipeline.data.plan import items_in_order
from pipeline.data.prepare import prepare
from pipeline.models.scratch import create_clip, create_llm, train_tokenizer
from pipeline.recipe import load_recipe
from pipeline.splits import open_split
from tests.tiny import write_recipe

PREFIX = 4


def write_untrained(folder: Path) -> Path:
    """Writes all of it below `folder`; returns the recipe's path. `folder`/official.pt fits it."""
    path = write_recipe(folder, st__hidden=None, st__prefix_length=PREFIX)
    config = load_recipe([f"recipe={path}"])
    for entry in config.prepare.values():
        prepare(entry, report=lambda line: None)
    split = open_split(config, "train")
    scratch: ScratchConfig = config.pretrain.scratch

    def texts() -> Iterator[str]:
        for shard, record in items_in_order(split.in_order(1)):
            yield from split.reader.read(shard, record).data["captions"]

    tokenizer = train_tokenizer(texts(), scratch.vocab_size)
    create_clip(folder / "weights" / "clip", scratch, tokenizer, seed=0)
    create_llm(folder / "weights" / "llm", scratch, tokenizer, seed=0)
    save_official(folder / "official.pt", folder / "weights" / "llm", scratch.embed_dim)
    return path


def save_official(file: Path, llm_folder: Path, feature_width: int) -> None:
    """A state dict with the names and leftovers of the reference's `ClipCaptionModel`."""
    llm = GPT2LMHeadModel.from_pretrained(llm_folder)
    width, context = llm.config.n_embd, llm.config.n_positions
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter.normal_(std=0.4)
    hidden = width * PREFIX // 2
    mapper = nn.Sequential(
        nn.Linear(feature_width, hidden), nn.Tanh(), nn.Linear(hidden, width * PREFIX)
    )
    nn.init.normal_(mapper[0].weight, std=30.0)
    state = {f"clip_project.model.{name}": each for name, each in mapper.state_dict().items()}
    state |= {f"gpt.{name}": each for name, each in llm.state_dict().items()}
    for layer in range(llm.config.n_layer):
        mask = torch.ones(context, context, dtype=torch.uint8).tril()[None, None]
        state[f"gpt.transformer.h.{layer}.attn.bias"] = mask
        state[f"gpt.transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, file)
