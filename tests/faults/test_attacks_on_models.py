"""Nothing runs from models: an attack for each thing that we read from somebody else.

A trap is code that makes a file where it runs. Every attack goes the way a user's file would go;
what is refused is refused in one line, what can be skipped is skipped and counted, and no trap ever
springs. Checkpoints of a real run are attacked in
tests/dist/test_stages.py.
"""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import EncoderConfig, LLMConfig, ScratchConfig
from pipeline.data.features import CachedFeatures
from pipeline.data.manifest import load_manifest
from pipeline.data.reader import ShardReader
from pipeline.errors import CheckpointError, ConfigError, DataError, UserError
from pipeline.export_files import ExportTensors, read_export
from pipeline.models.encoder import load_clip
from pipeline.models.imports import read_reference
from pipeline.models.llm import load_llm, load_llm_config, load_tokenizer
from pipeline.models.placement import Placement
from pipeline.models.scratch import create_clip, create_llm, train_tokenizer
from pipeline.recipe import load_recipe
from tests.faults.traps import Trap, change_json, code_that_springs

SIZES = ScratchConfig(
    vocab_size=280,
    context_length=16,
    image_size=16,
    patch_size=8,
    vision_width=16,
    vision_layers=1,
    text_width=16,
    text_layers=1,
    embed_dim=8,
    llm_width=16,
    llm_layers=1,
    heads=2,
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP in clip/ and a small language model in llm/, both whole."""
    folder = tmp_path_factory.mktemp("weights")
    tokenizer = train_tokenizer(["some text to learn letters from"] * 5, SIZES.vocab_size)
    create_clip(folder / "clip", SIZES, tokenizer, seed=0)
    create_llm(folder / "llm", SIZES, tokenizer, seed=0)
    return folder


def copied(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {mark}']",
        "!!python/object/new:os.system ['touch {mark}']",
        "!!python/name:os.system",
        "!!python/module:os",
    ],
)
def test_a_recipe_cannot_name_python_objects(tmp_path: Path, mark: Path, tag: str) -> None:
    value = tag.format(mark=mark)
    recipe = tmp_path / "evil.yaml"
    recipe.write_text(f"name: {value}\n")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_recipe([f"recipe={recipe}"])
    with pytest.raises(ConfigError):
        load_recipe([f"name={value}"])
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "".join(
            f"{a}: &{a} [{', '.join([f'*{b}'] * 9)}]\n"
            for a, b in zip("bcdefgh", "abcdefg", strict=True)
        ).join(["a: &a [x]\n", ""]),
        f"name: {'[' * 5000}{']' * 5000}\n",
        f"seed: {'9' * 5000}\n",
    ],
)
def test_a_recipe_made_to_break_its_reader_is_one_line(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "evil.yaml"
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=r"is not valid YAML|cannot be read"):
        load_recipe([f"recipe={recipe}"])


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["clipcap", "lavin", "llama_adapter"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_of_the_reference_cannot_run_code(
    tmp_path: Path, weights: Path, trap: Trap, mark: Path, family: str, legacy: bool
) -> None:
    file = tmp_path / "evil.pt"
    torch.save({"model": trap}, file, _use_new_zipfile_serialization=not legacy)
    arguments = [f"llm.path={weights / 'llm'}", f"encoder.arch=local-dir:{weights / 'clip'}"]
    config = load_recipe([*arguments, "encoder.pretrained=null", "data.max_tokens=4"])
    config.family = family
    config.lavin.image_layers = [1]
    with pytest.raises(UserError):
        read_reference(file, config)
    assert not mark.exists()


def test_weights_of_a_language_model_cannot_run_code(
    tmp_path: Path, weights: Path, trap: Trap, mark: Path
) -> None:
    folder = copied(weights / "llm", tmp_path / "llm")
    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": trap}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        llm_in(folder)
    assert not mark.exists()


def llm_in(folder: Path) -> object:
    cfg = LLMConfig(path=str(folder))
    return load_llm(cfg, dtype=torch.float32, placement=Placement(), seed=0)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd"])
def test_an_index_of_weights_cannot_name_files_elsewhere(
    tmp_path: Path, weights: Path, name: str
) -> None:
    folder = copied(weights / "llm", tmp_path / "llm")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    change_json(folder / "model.safetensors.index.json", weight_map={"wte.weight": name})
    with pytest.raises(ConfigError, match="is no file of that folder"):
        llm_in(folder)


def put_code(folder: Path, mark: Path) -> None:
    for name in ("modeling.py", "configuration.py", "tokenization.py"):
        (folder / name).write_text(code_that_springs(mark))


@pytest.mark.parametrize("model_type", ["gpt2", "evil"])
def test_code_beside_a_language_model_is_not_run(
    tmp_path: Path, weights: Path, mark: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "y")  # transformers asks who does not say no
    folder = copied(weights / "llm", tmp_path / "llm")
    put_code(folder, mark)
    auto = {"AutoConfig": "configuration.C", "AutoModelForCausalLM": "modeling.M"}
    change_json(folder / "config.json", auto_map=auto, model_type=model_type)
    if model_type == "gpt2":
        llm_in(folder)  # as transformers' own
    else:
        with pytest.raises(ConfigError, match=r"llm\.path: .* cannot be loaded"):
            llm_in(folder)
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "EvilTokenizer", None])
def test_code_beside_a_tokenizer_is_not_run(
    tmp_path: Path, weights: Path, mark: Path, kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "y")
    folder = copied(weights / "llm", tmp_path / "llm")
    put_code(folder, mark)
    auto = {"AutoTokenizer": ["tokenization.T", "tokenization.T"]}
    values = {"auto_map": auto} | ({} if kind is None else {"tokenizer_class": kind})
    change_json(folder / "tokenizer_config.json", **values)
    try:
        load_tokenizer(LLMConfig(path=str(folder)))
    except ConfigError as error:
        assert "cannot be loaded" in str(error)
    assert not mark.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_model_cannot_name_attention_code_of_the_hub(
    tmp_path: Path, weights: Path, key: str
) -> None:
    folder = copied(weights / "llm", tmp_path / "llm")
    change_json(folder / "config.json", **{key: "kernels-community/flash-attn"})
    with pytest.raises(ConfigError, match="attention code of the hub"):
        load_llm_config(LLMConfig(path=str(folder)))


@pytest.mark.parametrize("name", ["open_clip_model.pt", "open_clip_pytorch_model.bin"])
def test_weights_of_an_image_tower_cannot_run_code(
    tmp_path: Path, weights: Path, trap: Trap, mark: Path, name: str
) -> None:
    torch.save({"visual.proj": trap}, tmp_path / name)
    folder = copied(weights / "clip", tmp_path / "clip")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    torch.save({"visual.proj": trap}, folder / "open_clip_pytorch_model.bin")
    for cfg in (
        EncoderConfig(arch=f"local-dir:{folder}", pretrained=None),
        EncoderConfig(arch="ViT-B-32", pretrained=str(tmp_path / name)),
    ):
        with pytest.raises(UserError):
            load_clip(cfg)
    assert not mark.exists()


def test_code_beside_an_image_tower_is_not_run(
    tmp_path: Path, weights: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "y")
    folder = copied(weights / "clip", tmp_path / "clip")
    put_code(folder, mark)
    auto = {"AutoTokenizer": ["tokenization.T", "tokenization.T"]}
    change_json(folder / "tokenizer_config.json", auto_map=auto, tokenizer_class="EvilTokenizer")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="its tokenizer cannot be loaded"):
        load_clip(EncoderConfig(arch=f"local-dir:{folder}", pretrained=None))
    assert not mark.exists()


# --- our own files --------------------------------------------------------------------------------


def test_an_export_is_no_pickle(tmp_path: Path, trap: Trap, mark: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(pickle.dumps(trap))
    (tmp_path / "export.json").write_bytes(pickle.dumps(trap))
    with pytest.raises(CheckpointError):
        ExportTensors(tmp_path)
    with pytest.raises(CheckpointError):
        read_export(tmp_path)
    assert not mark.exists()


def test_cached_features_are_no_pickle(tmp_path: Path, split: Path, trap: Trap, mark: Path) -> None:
    file = tmp_path / "features.npy"
    reader = ShardReader(load_manifest(split), max_pixels=1, retry_wait=0.0)
    raw = reader.read(0, 0)
    np.save(file, np.array([[trap]] * 4, dtype=object), allow_pickle=True)
    for content in (file.read_bytes(), pickle.dumps(trap)):
        file.write_bytes(content)
        with pytest.raises(DataError, match="cached features"):
            CachedFeatures([file])(reader, raw, 0, 0)
    assert not mark.exists()
