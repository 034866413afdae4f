"""Models in and out: a checkpoint of the reference is scored, captions own images, and leaves as
folders that other libraries load.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.assemble import build_caption_model, overlay
from pipeline.config import Config, LoRAConfig, STConfig
from pipeline.conversion import merged_llm
from pipeline.data.plan import items_in_order
from pipeline.dist import World
from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluation.finishing import output_folder
from pipeline.evaluation.own_images import caption_images
from pipeline.evaluation.runner import evaluate
from pipeline.export_files import ExportTensors, save_export
from pipeline.interchange import export
from pipeline.models.encoder import load_clip
from pipeline.models.llm import load_llm
from pipeline.models.lora import is_adapter, stable_name
from pipeline.models.placement import Placement
from pipeline.models.st import build_st
from pipeline.progress import Progress
from pipeline.recipe import load_recipe
from pipeline.splits import open_split
from tests.untrained import write_untrained

UNPARTITIONED = ("st_align.ds_config=zero2", "llm_tune.ds_config=zero2")
ALONE = World(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained recipe and its official checkpoint, imported into `imported`."""
    made = tmp_path_factory.mktemp("interchange")
    write_untrained(made)
    said = export(asked(made, f"official={made / 'official.pt'}", f"out={made / 'imported'}"))
    assert "mlp mapper, prefix_length 4" in said and "captions end at '.'" in said
    assert "features are not normalised (encoder.normalize;" in said
    return made


def asked(folder: Path, *arguments: str, section: str = "export") -> Config:
    recipe = [] if arguments[0].startswith("checkpoint=") else [f"recipe={folder / 'tiny.yaml'}"]
    return load_recipe([*recipe, *arguments], section)


@pytest.fixture(scope="module")
def predictions(folder: Path) -> dict[str, str]:
    """Key -> caption of the imported checkpoint on the test split; no phase was ever run."""
    config = asked(folder, f"evaluate.export={folder / 'imported'}", "evaluate.stop=.")
    config.evaluate = replace(config.evaluate, metrics=[], beams=5)
    result = evaluate(config, ALONE)
    assert result["records"] == 10 and result["loss"] > 0
    lines = (output_folder(config) / "predictions.jsonl").read_text().splitlines()
    return {each["key"]: each["caption"] for each in map(json.loads, lines)}


def test_an_imported_checkpoint_is_scored_without_training(predictions: dict[str, str]) -> None:
    assert len(predictions) == 10
    assert len(set(predictions.values())) > 3  # the images matter


def test_an_imported_checkpoint_must_be_told_where_captions_end(folder: Path) -> None:
    config = asked(folder, f"evaluate.export={folder / 'imported'}", "evaluate.metrics=[]")
    with pytest.raises(ConfigError, match=r"never learnt an EOS.* set evaluate\.stop=\."):
        evaluate(config, ALONE)
    config.caption.checkpoint, config.caption.images = str(folder / "imported"), str(folder)
    with pytest.raises(ConfigError, match=r"never learnt an EOS.* set evaluate\.stop=\."):
        caption_images(config, ALONE)


@pytest.fixture(scope="module")
def pictures(folder: Path, predictions: dict[str, str]) -> Path:
    """The images of the test split as files, in folders, with unusable ones among them."""
    target = folder / "pictures"
    split = open_split(asked(folder, "name=x"), "test")
    for shard, record in items_in_order(split.in_order(1)):
        raw = split.reader.read(shard, record)
        file = target / str(record % 2) / f"{raw.key}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(raw.image)
    (target / "0" / "not an image.jpg").write_text("text")
    (target / "notes.txt").write_text("text")
    return target


def test_own_images_get_the_captions_that_the_evaluation_gives_them(
    folder: Path, pictures: Path, predictions: dict[str, str]
) -> None:
    arguments = (f"checkpoint={folder / 'imported'}", f"images={pictures}", "evaluate.beams=5")
    config = asked(folder, *arguments, f"out={folder / 'said'}", section="caption")
    assert "10 images captioned, 10 on the sheet; skipped: 1 undecodable" in caption_images(
        config, ALONE
    )
    lines = [json.loads(x) for x in (folder / "said" / "captions.jsonl").read_text().splitlines()]
    said = {Path(each["file"]).stem: each["caption"] for each in lines if "caption" in each}
    assert said == predictions
    assert [each["file"] for each in lines if "reason" in each] == ["0/not an image.jpg"]
    assert [each["file"] for each in lines] == sorted(each["file"] for each in lines)
    html = (folder / "said" / "captions.html").read_text()
    assert html.count("data:image/jpeg;base64,") == 10 and "not an image.jpg" in html


def test_the_sheet_is_bounded_and_says_so(folder: Path, pictures: Path) -> None:
    arguments = (f"checkpoint={folder / 'imported'}", f"images={pictures}", "shown=3")
    config = asked(folder, *arguments, f"out={folder / 'few'}", section="caption")
    caption_images(config, ALONE)
    html = (folder / "few" / "captions.html").read_text()
    assert html.count("<img ") < 4 and "are shown, all" in html


def test_an_export_leaves_as_folders_that_give_the_same_captions_without_us(
    folder: Path, pictures: Path, predictions: dict[str, str]
) -> None:
    tuned = with_adapted_encoder(folder)
    export(asked(folder, f"checkpoint={tuned}", f"out={folder / 'plain'}"))
    plain = folder / "plain"
    details = json.loads((plain / "st.json").read_text())
    clip, _, transform = open_clip.create_model_and_transforms(f"local-dir:{plain / 'encoder'}")
    kinds = {key: details[key] for key in ("kind", "prefix_length", "hidden")}
    widths = {"width": details["feature_width"], "llm_width": details["llm_width"]}
    st = build_st(STConfig(**kinds), **widths)
    st.load_state_dict(load_file(plain / "st.safetensors"))
    llm = AutoModelForCausalLM.from_pretrained(plain / "llm")
    tokenizer = AutoTokenizer.from_pretrained(plain / "llm")
    clip.eval()

    config = asked(folder, f"checkpoint={tuned}", f"images={pictures}", section="caption")
    config.caption.out, config.evaluate.beams = str(folder / "ours"), 1
    caption_images(config, ALONE)
    lines = [json.loads(x) for x in (folder / "ours" / "captions.jsonl").read_text().splitlines()]
    usable = [each for each in lines if "caption" in each]
    assert len(usable) == 10
    for each in usable:
        image = transform(Image.open(pictures / each["file"]).convert("RGB"))[None]
        with torch.no_grad():
            prefix = st(clip.encode_image(image))
            stop = tokenizer.encode(details["stop"])[0]
            ids = llm.generate(
                inputs_embeds=prefix,
                attention_mask=torch.ones(prefix.shape[:2]),
                eos_token_id=[llm.generation_config.eos_token_id, stop],
                max_new_tokens=config.evaluate.max_new_tokens,
            )
        text = tokenizer.decode(ids[0], skip_special_tokens=True)
        assert " ".join(text.split()) == each["caption"]
    assert {each["caption"] for each in usable} != set(predictions.values())  # it was adapted


def with_adapted_encoder(folder: Path) -> Path:
    """The imported export as a phase would hand it on that has changed the image tower too."""
    config = load_recipe([f"recipe={folder / 'imported' / 'config.yaml'}"])
    clip = load_clip(config.encoder, seed=config.seed)
    torch.manual_seed(5)
    changed = {
        f"encoder.{name}": each.detach() + 0.1 * torch.randn_like(each)
        for name, each in clip.model.named_parameters()
        if name.startswith("visual.")
    }
    tensors = ExportTensors(folder / "imported")
    details = {"fingerprint": "f", "phase": "llm_tune"}
    target = folder / "runs" / "adapted" / "llm_tune" / "export"
    save_export(target, {**tensors, **changed}, Progress(), details, config)
    return folder / "runs" / "adapted"


def test_what_leaves_has_the_text_tower_only_where_it_is_known(
    folder: Path, tmp_path: Path
) -> None:
    said = export(asked(folder, f"checkpoint={with_adapted_encoder(folder)}", f"out={tmp_path}"))
    assert "encoder/ (open_clip; its text tower as it came)" in said
    said = export(asked(folder, f"checkpoint={folder / 'imported'}", f"out={tmp_path / 'plain'}"))
    assert said.endswith("weights/clip of open_clip as it came")
    assert not (tmp_path / "plain" / "encoder").exists()


def test_an_import_reads_back_as_the_same_model(folder: Path) -> None:
    config = asked(folder, "name=x")
    state = torch.load(folder / "official.pt", weights_only=True)
    tensors = ExportTensors(folder / "imported")
    options: dict[str, Any] = {"dtype": torch.float32, "placement": Placement(), "world": ALONE}
    config.data.cache_features = False
    model = build_caption_model(config, tensors, {}, **options).model
    assert torch.equal(model.st.get_parameter("up.weight"), state["clip_project.model.0.weight"])
    head = model.llm.get_output_embeddings().weight
    assert torch.equal(head, state["gpt.transformer.wte.weight"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["name=x"], "give either official=FILE .* or checkpoint=FOLDER"),
        (["official=a.pt", "out={f}/new", "checkpoint={f}/imported"], "give either official="),
        (["official={f}/official.pt"], "out= is missing"),
        (["official={f}/official.pt", "out={f}/imported"], "is not an empty folder; name another"),
        (["official={f}/official.pt", "out={f}/new", "st.hidden=7"], r"set st\.hidden=64$"),
        (["checkpoint={f}/weights", "out={f}/new"], "checkpoint=.*weights holds no finished exp"),
        (
            ["checkpoint={f}/imported", "out={f}/new", "llm.quantize=8bit", *UNPARTITIONED],
            r"trained beside weights of llm\.quantize=8bit; add llm\.quantize=none",
        ),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    folder: Path, arguments: list[str], reason: str
) -> None:
    filled = [each.format(f=folder) for each in arguments]
    with pytest.raises(ConfigError, match=reason):
        export(load_recipe([f"recipe={folder / 'tiny.yaml'}", *filled], "export"))
    assert not (folder / "new").exists()


def test_an_export_without_an_st_cannot_caption(folder: Path, tmp_path: Path) -> None:
    config = asked(folder, "name=x")
    save_export(tmp_path, {"encoder.a": torch.ones(1)}, Progress(), {}, config)
    config.caption.checkpoint, config.caption.images = str(tmp_path), str(folder)
    with pytest.raises(CheckpointError, match="holds no ST network"):
        caption_images(config, ALONE)


def test_adapters_leave_folded_into_the_weights(folder: Path) -> None:
    config = asked(folder, "name=adapted", "llm.lora.rank=2")
    build = {"dtype": torch.float32, "placement": Placement(), "seed": 0}
    wrapped = load_llm(config.llm, **build)
    torch.manual_seed(3)
    adapters = {
        f"llm.{stable_name(name)}": torch.randn_like(each)
        for name, each in wrapped.named_parameters()
        if is_adapter(name)
    }
    overlay(wrapped, adapters, "llm.", Placement())
    plain = merged_llm(config, adapters)
    base = load_llm(replace(config.llm, lora=LoRAConfig()), **build)
    assert plain.state_dict().keys() == base.state_dict().keys()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, wrapped(ids).logits, atol=1e-4, rtol=1e-5)
        assert not torch.allclose(plain(ids).logits, base(ids).logits, atol=1e-2)
