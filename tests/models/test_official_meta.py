"""Meta's own LLaMA files: equal to the model they were made of, whole and sharded."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from pipeline.config import LLMConfig
from pipeline.errors import CheckpointError, ConfigError, UserError
from pipeline.models.llm import check_weights, load_llm, load_llm_config, load_tokenizer
from pipeline.models.official_meta import MetaWeights, is_meta_folder, rename, split_halves
from pipeline.models.placement import Placement
from pipeline.models.scratch import train_tokenizer
from tests.models import tiny

HEADS, GROUPS = 4, 2


def llama(**changes: Any) -> LlamaForCausalLM:
    model = tiny.llama(num_attention_heads=HEADS, num_key_value_heads=GROUPS, **changes)
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "norm" in name:
                each.normal_()
    return model


def theirs(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """The model's tensors under Meta's names, RoPE interleaved, and the frequencies beside them."""
    layer = ("attention.wq", "attention.wk", "attention.wv", "attention.wo", "attention_norm")
    layer = (*layer, "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "ffn_norm")
    names = ["tok_embeddings.weight", "norm.weight", "output.weight"]
    names += [f"layers.{i}.{each}.weight" for i in range(2) for each in layer]
    found = {}
    for name in names:
        value = model.state_dict()[rename(name)]
        for end, heads in (("wq.weight", HEADS), ("wk.weight", GROUPS)):
            if name.endswith(end):  # row 2 i + j of a head is row j d / 2 + i of transformers'
                half = value.shape[0] // heads // 2
                value = value.view(heads, 2, half, -1).transpose(1, 2).reshape(value.shape)
        found[name] = value.clone()
    return {**found, "rope.freqs": torch.ones(2)}


def write(
    folder: Path, tensors: dict[str, Tensor], shards: int, *, by_words: bool = False, **more: Any
) -> None:
    """As Meta shards them; by_words: the vocabulary is cut, as in LLaMA 3, not the width."""
    for number in range(shards):
        shard = {}
        for name, value in tensors.items():
            columns = ("wo.weight", "w2.weight", *(() if by_words else ("tok_embeddings.weight",)))
            if value.dim() == 1:
                shard[name] = value
            else:
                shard[name] = value.chunk(shards, int(name.endswith(columns)))[number].clone()
        torch.save(shard, folder / f"consolidated.{number:02d}.pth")
    params = {"dim": tiny.WIDTH, "n_layers": 2, "n_heads": HEADS, "n_kv_heads": GROUPS}
    params |= {"norm_eps": 1e-6, "vocab_size": -1, "multiple_of": 8, "rope_theta": 500.0, **more}
    (folder / "params.json").write_text(json.dumps(params))


def load(folder: Path) -> Any:
    cfg = LLMConfig(path=str(folder))
    return load_llm(cfg, dtype=torch.float32, placement=Placement(), seed=0)


@pytest.mark.parametrize(("shards", "by_words"), [(1, False), (2, False), (2, True)])
def test_files_of_a_model_load_back_equal(tmp_path: Path, shards: int, by_words: bool) -> None:
    theta = {"rope_type": "default", "rope_theta": 500.0}
    model = llama(vocab_size=38, rope_parameters=theta)  # an even vocabulary can be cut in two
    write(tmp_path, theirs(model), shards, by_words=by_words)
    assert is_meta_folder(str(tmp_path))
    loaded = load(tmp_path)
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name
    ids = torch.tensor([[1, 2, 3, 4]])
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=0, rtol=0)


def test_a_folder_without_config_json_has_its_weights_and_needs_a_tokenizer(tmp_path: Path) -> None:
    write(tmp_path, theirs(llama(vocab_size=38)), 2)
    cfg = LLMConfig(path=str(tmp_path))
    check_weights(cfg)
    with pytest.raises(ConfigError, match=r"put the model's tokenizer\.json .* beside the weights"):
        load_tokenizer(cfg)
    train_tokenizer(["a text"], 300).save_pretrained(tmp_path)
    assert load_tokenizer(cfg).decode(load_tokenizer(cfg).encode("a text")) == "a text"


def test_the_permutation_turns_interleaved_rope_into_the_halves_of_transformers() -> None:
    torch.manual_seed(0)
    weight, inputs, angles = torch.randn(2 * 6, 5), torch.randn(5), torch.randn(3)
    query = (weight @ inputs).view(2, 3, 2)  # heads, pairs of neighbours
    turned = torch.view_as_complex(query) * torch.polar(torch.ones(3), angles)
    first, second = (split_halves(weight, 2) @ inputs).view(2, 2, 3).unbind(1)
    real, imaginary = (
        first * angles.cos() - second * angles.sin(),
        first * angles.sin() + second * angles.cos(),
    )
    torch.testing.assert_close(turned, torch.complex(real, imaginary))


def anonymous_bytes() -> int:
    """Memory of this process that is not mapped from files."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024


def test_shards_are_mapped_and_not_held(tmp_path: Path) -> None:
    # Tensors above 32 MB, the most that glibc keeps for itself when they are freed.
    write(tmp_path, theirs(llama(vocab_size=600_000)), 2)
    shard = (tmp_path / "consolidated.00.pth").stat().st_size
    before = anonymous_bytes()
    weights = MetaWeights(tmp_path)
    for name in weights.shapes:
        assert tuple(weights(name).shape) == weights.shapes[name]
    assert shard > 25e6
    assert anonymous_bytes() - before < shard / 4


def lose(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def change(edit: Callable[[dict[str, Any]], Any], shard: int = 0) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / f"consolidated.{shard:02d}.pth"
        tensors = torch.load(file, weights_only=True)
        edit(tensors)
        torch.save(tensors, file)

    return apply


def params(**more: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "params.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **more}))

    return apply


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lose("consolidated.00.pth"), ConfigError, r"not all there \(found: consolidated.01.pth"),
        (lose("consolidated.01.pth"), CheckpointError, "1 shards hold 8 of the 16 rows"),
        (change(lambda t: t.update(odd=torch.ones(1))), CheckpointError, "does not have: odd;"),
        (
            change(lambda t: t.pop("norm.weight")),
            CheckpointError,
            r"shard 0 lacks norm\.weight",
        ),
        (
            change(lambda t: t.pop("norm.weight"), shard=1),
            CheckpointError,
            r"shard 1 lacks norm\.weight",
        ),
        (change(lambda t: t.update(odd=[1])), CheckpointError, "more than tensors"),
        (params(n_layers=3), CheckpointError, r"lacks model\.layers\.2"),
        (
            change(lambda t: t.update(odd=torch.ones(1)), shard=1),
            CheckpointError,
            "does not have: odd;",
        ),
        (
            change(lambda t: t.update({"layers.0.attention.wq.weight": torch.ones(8, 4)}), shard=1),
            CheckpointError,
            r"not of one model: layers\.0\.attention\.wq\.weight",
        ),
        (
            change(lambda t: t.update({"norm.weight": torch.ones(7)}), shard=1),
            CheckpointError,
            r"not of one model: norm\.weight",
        ),
        (
            change(lambda t: t.update({"output.weight": torch.tensor(1.0)})),
            CheckpointError,
            r"output\.weight is \(\), no matrix",
        ),
        (
            params(n_layers=1),
            CheckpointError,
            r"holds layers\.1\..*wq\.weight.* of which its params\.json does not speak",
        ),
        (params(n_layers=0), ConfigError, "n_layers is 0"),
        (params(n_heads=3), ConfigError, "3 heads .* do not divide dim 16"),
        (params(norm_eps="a"), ConfigError, "norm_eps is 'a', no number"),
        (params(rope_theta=None), ConfigError, "rope_theta is None, no number"),
        (params(use_scaled_rope=True), ConfigError, "scaled RoPE"),
        (params(dim=None), ConfigError, "dim is None"),
        (
            lambda folder: (folder / "params.json").write_text("{}"),
            ConfigError,
            "does not say dim, n_heads, n_layers, norm_eps",
        ),
        (
            lambda folder: (folder / "consolidated.01.pth").write_bytes(b"no zip"),
            CheckpointError,
            "cannot be read safely",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, damage: Callable[[Path], None], error: type[UserError], message: str
) -> None:
    write(tmp_path, theirs(llama(vocab_size=38)), 2)
    damage(tmp_path)
    with pytest.raises(error, match=message) as raised:
        load_llm_config(LLMConfig(path=str(tmp_path)))
    assert "\n" not in str(raised.value)
