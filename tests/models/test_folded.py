"""LaVIN's adapters folded into a folder that transformers loads by itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from pipeline.dist import World
from pipeline.models.folded import folded_llm
from tests.models import tiny
from tests.models.test_lavin import every_logit, lavin, rows

ALONE = World(0, 1, 0, 1, torch.device("cpu"))
EVERY = pytest.mark.parametrize("name", sorted(set(tiny.DECODERS) - {"mistral"}))


def of_kind(has_image: bool) -> tuple[dict[str, Tensor], Tensor]:
    """The rows of one modality, and which of their logits are real."""
    row = rows()
    kept = (row["image_rows"] >= 0) == has_image
    chosen = {key: each if key == "features" else each[kept] for key, each in row.items()}
    return chosen, chosen["attention_mask"][:, :-1].bool()


@EVERY
@pytest.mark.parametrize("has_image", [False, True])
def test_transformers_alone_says_what_lavin_says(
    tmp_path: Path, name: str, has_image: bool
) -> None:
    model = lavin(tiny.DECODERS[name](), dropout=0.5)
    row, real = of_kind(has_image)
    expected = every_logit(model, row).view(*real.shape, -1)[real]
    embeds = model.image_embeddings(features=row["features"]) if has_image else None
    inputs = model.embed(row["input_ids"], embeds, row["image_rows"])
    before = AutoModelForCausalLM.from_config(model.llm.config).state_dict().keys()
    folded = folded_llm(model, has_image=has_image)
    assert folded is not None
    folded.save_pretrained(tmp_path)

    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert before <= plain.state_dict().keys()
    given: dict[str, Any] = {"attention_mask": row["attention_mask"], "inputs_embeds": inputs}
    if name == "gpt2" and not has_image:  # its places are in the embeddings of tokens too
        given = {"attention_mask": row["attention_mask"], "input_ids": row["input_ids"]}
    logits = plain(**given).logits[:, :-1][real]
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=2e-5)


def test_a_model_without_a_place_for_the_bias_is_left_alone() -> None:
    assert folded_llm(lavin(tiny.mistral()), has_image=False) is None
