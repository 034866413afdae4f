"""Small shards and small random weights in the libraries' own formats, made in a second.

`build` lays them out as `tests/tiny.py`'s recipe expects them, without training anything.
"""

from pathlib import Path
from typing import Any

from pipeline.config import Config, PrepareConfig
from pipeline.data.prepare import prepare
from pipeline.models.scratch import create_clip, create_llm, train_tokenizer
from pipeline.recipe import load_recipe
from tests.tiny import write_recipe


def build(folder: Path, **changes: Any) -> Path:
    """Shards, a CLIP, an LM and a recipe that uses them; returns the recipe's path."""
    path = write_recipe(folder, make_missing=False, **changes)
    config = load_recipe([f"recipe={path}"])
    entry: PrepareConfig = config.prepare["scenes"]
    prepare(entry, report=lambda line: None)
    weights(config, folder / "weights")
    return path


def weights(config: Config, folder: Path) -> None:
    """The two small models of a recipe's `pretrain.scratch`, untrained."""
    scratch = config.pretrain.scratch
    tokenizer = train_tokenizer(["a red square above a blue circle"], scratch.vocab_size)
    create_clip(folder / "clip", scratch, tokenizer, seed=0)
    create_llm(folder / "llm", scratch, tokenizer, seed=0)
