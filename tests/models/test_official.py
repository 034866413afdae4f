"""The reference's checkpoints: same outputs, what the recipe must say, and no code that runs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.assemble import overlay
from pipeline.config import Config, EncoderConfig, LLMConfig, STConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.clipcap import ClipCap
from pipeline.models.multimodal import IMAGE_SLOT
from pipeline.models.official import check_recipe, read_official
from pipeline.models.placement import Placement
from pipeline.models.st import build_st
from tests.models.test_clipcap import golden_file

KINDS = ("mlp", "transformer")


def state_dict(kind: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """What the reference's train.py saved: old GPT-2 buffers and the tied head included."""
    tensors, sizes = golden_file(kind)
    state = {n.removeprefix("weight."): t for n, t in tensors.items() if n.startswith("weight.")}
    context = sizes["gpt2"]["n_positions"]
    mask = torch.ones(context, context, dtype=torch.uint8).tril()[None, None]
    for layer in range(sizes["gpt2"]["n_layer"]):
        state[f"gpt.transformer.h.{layer}.attn.bias"] = mask
        state[f"gpt.transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    state["gpt.lm_head.weight"] = state["gpt.transformer.wte.weight"]
    return state, tensors, sizes


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_official_checkpoint_gives_the_reference_outputs(
    kind: str, ending: str, tmp_path: Path
) -> None:
    state, tensors, sizes = state_dict(kind)
    file = tmp_path / f"coco-009.{ending}"
    if ending == "pt":
        torch.save(state, file)
    else:
        save_file({name: each.clone() for name, each in state.items()}, file)
    official = read_official(file)
    st = build_st(official.st, width=official.feature_width, llm_width=official.llm["n_embd"])
    model = ClipCap(None, st, GPT2LMHeadModel(GPT2Config(**sizes["gpt2"]))).eval()
    overlay(model.st, official.tensors, "st.", Placement())
    overlay(model.llm, official.tensors, "llm.", Placement())
    assert len(official.tensors) == len(list(model.named_parameters()))

    tokens, features = tensors["input.tokens"], tensors["input.clip_embedding"]
    rows, prefix = len(tokens), sizes["prefix_length"]
    slots = torch.full((rows, prefix), IMAGE_SLOT)
    embeds = model.image_embeddings(features=features)
    inputs = model.embed(torch.cat([slots, tokens], 1), embeds, torch.arange(rows))
    mask = torch.cat([torch.ones(rows, prefix), tensors["input.text_mask"]], 1)
    with torch.no_grad():
        logits = model.llm(inputs_embeds=inputs, attention_mask=mask).logits[:, prefix - 1 : -1]
    torch.testing.assert_close(embeds, tensors["output.prefix_embeds"], atol=1e-5, rtol=0)
    expected = tensors["output.caption_logits"]
    real = tensors["input.text_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_follow_from_the_file_alone(kind: str, tmp_path: Path) -> None:
    state, _, sizes = state_dict(kind)
    torch.save(state, tmp_path / "latest.pt")
    official = read_official(tmp_path / "latest.pt")
    found = (official.st.kind, official.st.prefix_length, official.feature_width)
    assert found == (kind, sizes["prefix_length"], sizes["embedding_width"])
    assert official.llm == {key: sizes["gpt2"][key] for key in official.llm}
    assert set(official.llm) == {"n_embd", "n_layer", "vocab_size", "n_positions"}
    if kind == "transformer":
        assert official.st.clip_length == sizes["clip_length"]
        assert official.st.num_layers == sizes["num_layers"]
        assert official.st.num_heads == sizes["num_heads"]


def test_a_file_with_the_mapper_alone_leaves_the_llm_as_it_came(tmp_path: Path) -> None:
    # predict.py's single layer; nothing in the file shows the LLM's width, 768 in all of theirs.
    mapper = torch.nn.Linear(512, 40 * 768)
    state = {f"clip_project.{name}": each for name, each in mapper.state_dict().items()}
    torch.save(state, tmp_path / "prefix.pt")
    official = read_official(tmp_path / "prefix.pt")
    assert (official.st.kind, official.st.prefix_length) == ("linear", 40)
    assert official.llm == {"n_embd": 768}
    st = build_st(official.st, width=512, llm_width=768)
    overlay(st, official.tensors, "st.", Placement())
    features = torch.randn(2, 512)
    assert torch.equal(st(features), mapper(features).view(2, 40, 768))


def recipe(folder: Path, sizes: dict[str, Any], **st: Any) -> Config:
    """A recipe whose LLM and image tower have the golden file's widths."""
    GPT2Config(**sizes["gpt2"]).save_pretrained(folder / "llm")
    tower = {"embed_dim": sizes["embedding_width"], "vision_cfg": {}, "text_cfg": {}}
    (folder / "clip").mkdir()
    clip = folder / "clip" / "open_clip_config.json"
    clip.write_text(json.dumps({"model_cfg": tower, "preprocess_cfg": {}}))
    (folder / "clip" / "open_clip_model.safetensors").touch()
    return Config(
        encoder=EncoderConfig(arch=f"local-dir:{folder / 'clip'}", pretrained=None),
        st=STConfig(**st),
        llm=LLMConfig(path=str(folder / "llm")),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_recipe_is_accepted_and_a_wrong_one_told_all_its_keys(
    kind: str, tmp_path: Path
) -> None:
    state, _, sizes = state_dict(kind)
    torch.save(state, tmp_path / "coco.pt")
    official = read_official(tmp_path / "coco.pt")
    keys = ("kind", "prefix_length", "clip_length", "num_layers", "num_heads")
    cfg = recipe(tmp_path, sizes, **{key: sizes[key] for key in keys})
    check_recipe(official, cfg)  # the MLP's hidden width is the reference's where it is null

    cfg.encoder = EncoderConfig(arch="RN50x4", pretrained=None)
    cfg.st = STConfig(kind="linear", prefix_length=9)
    cfg.llm = LLMConfig(path=str(tmp_path / "other"))
    GPT2Config(**{**sizes["gpt2"], "n_layer": 5}).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError) as caught:
        check_recipe(official, cfg)
    message = str(caught.value)
    expected = [
        f"st.kind={kind}",
        "st.prefix_length=5",
        "features of width 32)",
        "(a GPT-2 with n_embd 64, n_layer 2, vo",
    ]
    if kind == "transformer":
        expected += ["st.clip_length=4", "st.num_layers=3"]
    assert all(part in message for part in expected), message
    assert "\n" not in message


def test_the_towers_of_the_reference_are_named_by_their_widths(tmp_path: Path) -> None:
    GPT2Config(n_embd=768, n_layer=12, n_head=12).save_pretrained(tmp_path)
    for width, arch, other in ((512, "ViT-B-32", "RN50x4"), (640, "RN50x4", "ViT-B-32")):
        mapper = torch.nn.Linear(width, 10 * 768)
        state = {f"clip_project.{name}": each for name, each in mapper.state_dict().items()}
        torch.save(state, tmp_path / "x.pt")
        cfg = Config(
            encoder=EncoderConfig(arch=arch, pretrained=None),
            st=STConfig(kind="linear"),
            llm=LLMConfig(path=str(tmp_path)),
        )
        check_recipe(read_official(tmp_path / "x.pt"), cfg)
        cfg.encoder.arch = other
        with pytest.raises(ConfigError, match=rf"set encoder\.arch={arch}$"):
            check_recipe(read_official(tmp_path / "x.pt"), cfg)


class _Attack:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "code-ran"
    torch.save({"clip_project.weight": _Attack(f"touch {mark}")}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="without running code from it"):
        read_official(tmp_path / "evil.pt")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"clip_project.model.0.bias": None},
            "mlp mapper differs .* in st.up.bias",
        ),
        (
            {"clip_project.model.4.weight": torch.ones(2)},
            "mapper differs .* in st.model.4",
        ),
        ({"clip_project.model.0.weight": None}, "neither an MLP, a transformer nor a linear"),
        ({"gpt.transformer.wte.weight": None}, "gpt.transformer.wte.weight is missing"),
        ({"gpt.transformer.wpe.weight": None}, "gpt.transformer.wpe.weight is missing"),
        ({"gpt.transformer.wte.weight": torch.ones(3)}, "is missing, or no matrix"),
        ({"clip_project.model.0.weight": torch.tensor(1.0)}, "clip_project.model.0.weight has no"),
        ({"gpt.lm_head.weight": torch.ones(199, 64)}, "not tied to the embeddings"),
        ({"optimizer": torch.ones(2)}, "it holds optimizer"),
        ({"epoch": 3}, "it is no state dict"),
    ],
)
def test_what_is_not_of_the_reference_is_refused_with_the_reason(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    state = {**state_dict("mlp")[0], **change}
    torch.save({n: each for n, each in state.items() if each is not None}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=reason):
        read_official(tmp_path / "x.pt")


def test_a_missing_and_a_damaged_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        read_official(tmp_path / "none.pt")
    for name in ("torn.pt", "torn.safetensors"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 not a checkpoint")
        with pytest.raises(CheckpointError, match="or is damaged"):
            read_official(tmp_path / name)


# Google Drive, where the reference keeps its files, answers with a page when it has had enough.
@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>", b"hello", b"Quota exceeded", b""])
def test_a_page_saved_as_a_checkpoint_is_refused_in_one_line(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "coco.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="or is damaged") as caught:
        read_official(tmp_path / "coco.pt")
    assert str(caught.value).isprintable()
