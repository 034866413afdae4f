"""Language models against `from_pretrained`, and the user's mistakes as one line."""

from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from pipeline.config import LLMConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.llm import (
    context_length,
    llm_width,
    load_llm,
    load_llm_config,
    load_tokenizer,
    restore_buffers,
)
from pipeline.models.placement import Placement
from tests.models import tiny


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return load_llm(LLMConfig(path=str(folder)), dtype=dtype, placement=Placement(), seed=0)


def assert_equal(ours: PreTrainedModel, theirs: PreTrainedModel) -> None:
    for kind in ("named_parameters", "named_buffers"):
        one, other = dict(getattr(ours, kind)()), dict(getattr(theirs, kind)())
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value.dtype == other[name].dtype, name
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["5GB", "3KB"])
@pytest.mark.parametrize(
    "make", [tiny.gpt2, tiny.llama, tiny.gemma2, lambda: tiny.llama(tie_word_embeddings=True)]
)
def test_equals_from_pretrained(tmp_path: Path, make: type, shard: str, dtype: torch.dtype) -> None:
    make().save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "3KB")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    ours = load(tmp_path, dtype)
    assert_equal(ours, theirs)
    tied = ours.get_input_embeddings().weight is ours.get_output_embeddings().weight
    assert tied == ours.config.tie_word_embeddings
    assert ours.config._attn_implementation == theirs.config._attn_implementation
    assert not ours.training


def test_names_without_the_base_prefix_as_on_the_hub(tmp_path: Path) -> None:
    model = tiny.gpt2()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in state.items()}
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_equal(load(tmp_path), model)


def test_a_tied_parameter_saved_under_its_other_name(tmp_path: Path) -> None:
    model = tiny.gpt2()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["lm_head.weight"] = state.pop("transformer.wte.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_equal(load(tmp_path), model)


def test_bin_files_are_read_but_never_unpickled(tmp_path: Path) -> None:
    model = tiny.gpt2()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert_equal(load(tmp_path), model)
    for junk in ({"wte": Path}, [torch.zeros(1)]):
        torch.save(junk, tmp_path / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="cannot be read safely"):
            load(tmp_path)


def test_experts_that_transformers_stacks_are_read_through_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
        max_position_embeddings=32,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    assert_equal(load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path))


def test_rounded_rotary_frequencies_are_computed_again(tmp_path: Path) -> None:
    model = tiny.llama()
    expected = {name: value.clone() for name, value in model.named_buffers()}
    assert expected
    weights = [parameter.clone() for parameter in model.parameters()]
    rounded = model.bfloat16()
    assert any(value.dtype == torch.bfloat16 for value in rounded.buffers())
    restore_buffers(rounded)
    for name, value in rounded.named_buffers():
        assert torch.equal(value, expected[name]) and value.dtype == torch.float32
    assert all(map(torch.equal, model.parameters(), [each.bfloat16() for each in weights]))


def test_dropout_of_the_recipe_replaces_that_of_the_model(tmp_path: Path) -> None:
    tiny.gpt2(resid_pdrop=0.1).save_pretrained(tmp_path)
    assert load_llm_config(LLMConfig(path=str(tmp_path))).resid_pdrop == 0.1
    config = load_llm_config(LLMConfig(path=str(tmp_path), dropout=0.3))
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.3, 0.3, 0.3)


def test_sizes_come_from_the_config() -> None:
    assert (context_length(tiny.gpt2().config), llm_width(tiny.gpt2().config)) == (32, tiny.WIDTH)
    assert (context_length(tiny.llama().config), llm_width(tiny.llama().config)) == (32, tiny.WIDTH)


def test_weights_of_another_size_or_model_are_refused(tmp_path: Path) -> None:
    tiny.gpt2().save_pretrained(tmp_path)
    tiny.gpt2(n_embd=8).config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"wte\.weight: the model's shape is \(37, 8\)"):
        load(tmp_path)
    tiny.gpt2(n_layer=3).config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no tensor for transformer\.h\.2"):
        load(tmp_path)


@pytest.mark.parametrize("path", ["/no/such/folder", "./nowhere", "weights/llama/7b"])
def test_a_missing_folder(path: str) -> None:
    with pytest.raises(ConfigError, match=rf"llm\.path: there is no folder {path}"):
        load_llm_config(LLMConfig(path=path))


def test_a_folder_that_is_no_model_and_one_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load(tmp_path)
    tiny.gpt2().config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"neither model\.safetensors nor"):
        load(tmp_path)
    tiny.gpt2().save_pretrained(tmp_path, max_shard_size="3KB")
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(ConfigError, match=r"the shard .* is missing"):
        load(tmp_path)


def test_an_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **options: object) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'\nmore lines")

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ConfigError, match="hf download gpt2 --local-dir") as caught:
        load_llm_config(LLMConfig(path="gpt2"))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_needs_eos_and_pads_with_it(tmp_path: Path) -> None:
    cfg = LLMConfig(path=str(tmp_path))
    tiny.gpt2().config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no tokenizer files"):
        load_tokenizer(cfg)
    words = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no EOS token"):
        load_tokenizer(cfg)
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(cfg)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1


def test_a_hub_name_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.gpt2()
    model.save_pretrained(tmp_path, max_shard_size="3KB")

    def download(name: str, file: str) -> str:
        assert name == "someone/tiny"
        if not (tmp_path / file).is_file():
            raise EntryNotFoundError(f"no {file}")
        return str(tmp_path / file)

    monkeypatch.setattr("pipeline.models.llm.hf_hub_download", download)
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **options: model.config)
    assert_equal(load(Path("someone/tiny")), model)
