"""Small models from nothing are loaded like real ones, and trained weights go back atomically."""

from pathlib import Path

import pytest
import torch

from pipeline.config import EncoderConfig, LLMConfig, ScratchConfig
from pipeline.errors import ConfigError
from pipeline.models.encoder import load_clip
from pipeline.models.llm import load_llm, load_tokenizer
from pipeline.models.placement import Placement
from pipeline.models.scratch import create_clip, create_llm, save_clip, save_llm, train_tokenizer

TEXTS = ["a red circle above a blue square", "two green circles", "ein grünes Dreieck"] * 4
SIZES = ScratchConfig(
    vocab_size=300,
    context_length=12,
    image_size=16,
    patch_size=8,
    vision_width=16,
    vision_layers=2,
    text_width=16,
    embed_dim=8,
    llm_width=16,
    llm_layers=2,
)


def load(folder: Path) -> torch.nn.Module:
    cfg = LLMConfig(path=str(folder))
    return load_llm(cfg, dtype=torch.float32, placement=Placement(), seed=0)


def test_the_tokenizer_is_lossless_and_adds_nothing() -> None:
    tokenizer = train_tokenizer(iter(TEXTS), 300)
    assert len(tokenizer) <= 300
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    ids = tokenizer("a grün 猫, two").input_ids
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == "a grün 猫, two"
    with pytest.raises(ConfigError, match="257 or more"):
        train_tokenizer(TEXTS, 256)


def test_the_language_model(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    create_llm(tmp_path / "one", SIZES, tokenizer, seed=1)
    create_llm(tmp_path / "two", SIZES, tokenizer, seed=1)
    one, two = load(tmp_path / "one"), load(tmp_path / "two")
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))
    loaded = load_tokenizer(LLMConfig(path=str(tmp_path / "one")))
    assert loaded("two green").input_ids == tokenizer("two green").input_ids
    assert loaded.eos_token_id == one.config.eos_token_id == len(loaded) - 1
    assert one.config.resid_pdrop == 0.0
    with torch.no_grad():
        one.get_input_embeddings().weight.add_(1.0)
    save_llm(one, tmp_path / "one")
    assert all(map(torch.equal, load(tmp_path / "one").parameters(), one.parameters()))


def test_the_clip(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    create_clip(tmp_path, SIZES, tokenizer, seed=1)
    cfg = EncoderConfig(arch=f"local-dir:{tmp_path}")
    clip = load_clip(cfg)
    eos = tokenizer.eos_token_id
    tokens = clip.tokenize(["two green circles", "a " * 40])
    assert tokens.shape == (2, SIZES.context_length)
    plain = tokenizer("two green circles").input_ids
    assert tokens[0, : len(plain) + 1].tolist() == [*plain, eos]
    assert tokens[1, -1] == eos and eos not in tokens[1, :-1]
    with torch.no_grad():
        features = clip.model.encode_text(tokens)
        longer = clip.model.encode_text(torch.where(tokens == eos, eos, tokens))
        changed = tokens.clone()
        changed[0, len(plain) + 2 :] = 0  # behind EOS, so it must not matter
        torch.testing.assert_close(clip.model.encode_text(changed), features)
        assert torch.equal(features, longer)
        clip.model.logit_scale.fill_(2.0)
    save_clip(dict(clip.model.state_dict()), tmp_path)
    again = load_clip(cfg).model.state_dict()
    assert all(map(torch.equal, again.values(), clip.model.state_dict().values()))
    assert not list(tmp_path.glob(".*"))


def test_a_state_dict_of_views_is_saved_without_their_buffer(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    create_llm(tmp_path, SIZES, tokenizer, seed=0)
    model = load(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    shapes = {name: value.shape for name, value in model.named_parameters()}
    flat = torch.arange(float(sum(shape.numel() for shape in shapes.values())))
    views = dict(zip(shapes, flat.split([s.numel() for s in shapes.values()]), strict=True))
    save_llm({name: view.view(shapes[name]) for name, view in views.items()}, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 1.3 * size


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"heads": 3}, "vision_width: 16"), ({"patch_size": 5}, "patch_size: 5 does not divide")],
)
def test_sizes_that_do_not_divide(tmp_path: Path, changes: dict[str, int], match: str) -> None:
    sizes = ScratchConfig(**{**vars(SIZES), **changes})
    with pytest.raises(ConfigError, match=match):
        create_clip(tmp_path, sizes, train_tokenizer(TEXTS, 300), seed=0)
