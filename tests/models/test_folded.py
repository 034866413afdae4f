"""LaVIN's adapters folded into a folder that transformers loads by itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from pipeline.assemble import build_caption_model
from pipeline.dist import World
from pipeline.errors import ConfigError
from pipeline.export_files import save_export
from pipeline.interchange import export
from pipeline.models.folded import folded_llm
from pipeline.models.placement import Placement
from pipeline.progress import Progress
from pipeline.recipe import load_recipe
from tests.models import tiny
from tests.models.test_lavin import every_logit, lavin, rows
from tests.small import weights
from tests.tiny import write_questions

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
    folded_llm(model, has_image=has_image).save_pretrained(tmp_path)

    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert before <= plain.state_dict().keys()
    given: dict[str, Any] = {"attention_mask": row["attention_mask"], "inputs_embeds": inputs}
    if name == "gpt2" and not has_image:  # its places are in the embeddings of tokens too
        given = {"attention_mask": row["attention_mask"], "input_ids": row["input_ids"]}
    logits = plain(**given).logits[:, :-1][real]
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=2e-5)


def test_a_model_without_a_place_for_the_bias_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a mistral of transformers has no .*q_proj\.bias"):
        folded_llm(lavin(tiny.mistral()), has_image=False)


def test_an_export_is_folded_by_the_stage_and_only_where_it_is_lavin_s(tmp_path: Path) -> None:
    recipe = f"recipe={write_questions(tmp_path, 'lavin', make_missing=False)}"
    config = load_recipe([recipe, "data.cache_features=false"])
    weights(config, Path(config.pretrain.out))
    options: dict[str, Any] = {"dtype": torch.float32, "placement": Placement(), "world": ALONE}
    model = build_caption_model(config, {}, {}, **options).model
    torch.manual_seed(0)
    held = {
        name: torch.randn(each.shape)
        for name, each in model.named_parameters()
        if name.startswith(("encoder.adapters.", "st.", "adapters."))
    }
    details = {"fingerprint": "x", "phase": "llm_tune", "lora": None}
    save_export(tmp_path / "export", held, Progress(), details, config)

    source = [f"checkpoint={tmp_path / 'export'}", f"out={tmp_path / 'plain'}"]

    def asked(*arguments: str) -> str:
        return export(load_recipe([*source, *arguments], "export"))

    with pytest.raises(ConfigError, match="fold=text or fold=image makes one of it"):
        asked()
    other = f"recipe={write_questions(tmp_path, 'llama_adapter', make_missing=False)}"
    with pytest.raises(ConfigError, match=r"export\.fold=text: only .* family is llama_adapter"):
        asked(other, "fold=text")
    assert "llm/ (transformers)" in asked("fold=text")
    assert [each.name for each in (tmp_path / "plain").iterdir()] == ["llm"]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain" / "llm").state_dict()
    query = "transformer.h.0.attn.c_attn.weight"
    assert not torch.equal(plain[query], model.llm.state_dict()[query])
