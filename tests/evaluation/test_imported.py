"""Checkpoints of LaVIN's and LLaMA-Adapter's references, scored on questions without training."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.assemble import build_caption_model
from pipeline.config import Config
from pipeline.data.plan import items_in_order
from pipeline.data.prepare import prepare
from pipeline.data.prompts import IGNORE
from pipeline.data.scienceqa_prompts import Problem
from pipeline.dist import World
from pipeline.errors import CheckpointError
from pipeline.evaluation.finishing import output_folder
from pipeline.evaluation.questions import answer_questions
from pipeline.evaluation.scienceqa import read_results
from pipeline.export_files import ExportTensors, save_export
from pipeline.interchange import export
from pipeline.models.llm import load_tokenizer
from pipeline.models.multimodal import MultimodalLM
from pipeline.models.placement import Placement
from pipeline.models.scratch import create_clip, train_tokenizer
from pipeline.progress import Progress
from pipeline.recipe import load_recipe
from pipeline.splits import open_split
from pipeline.tasks import all_texts, question_rows
from tests.models import tiny
from tests.models.test_imports import their_name
from tests.models.test_official_meta import theirs, write
from tests.tiny import write_questions

ALONE = World(0, 1, 0, 1, torch.device("cpu"))
LAYERS, LENGTH, HEADS = 2, 3, 4


def recipe(folder: Path, family: str) -> Config:
    """Questions, a small CLIP, and a LLaMA as Meta publishes it, in two shards; nothing trained."""
    changes: dict[str, Any] = {"make_missing": False, "scienceqa__answer_weight": 1.0}
    config = load_recipe([f"recipe={write_questions(folder, family, **changes)}"])
    for entry in config.prepare.values():
        prepare(entry, report=lambda line: None)
    split, out = open_split(config, "train"), Path(config.pretrain.out)
    raws = [split.reader.read(*item) for item in items_in_order(split.in_order(1))]
    texts = [text for raw in raws for text in all_texts(config, raw)]
    tokenizer = train_tokenizer([*texts, *[" A B C"] * 500], 300)
    create_clip(out / "clip", config.pretrain.scratch, tokenizer, seed=0)
    llm = tiny.llama(vocab_size=300, num_attention_heads=HEADS, num_key_value_heads=2)
    (out / "llm").mkdir()
    write(out / "llm", theirs(llm), 2)
    tokenizer.save_pretrained(out / "llm")
    return config


def imported(folder: Path, family: str, tensors: dict[str, Tensor]) -> tuple[Config, str]:
    """The recipe, set to score an import of these tensors as the reference saves them."""
    saved = {"model": tensors, "epoch": 19, "args": Namespace(lr=0.1)}
    torch.save(saved, folder / "checkpoint-19.pth")
    asked = [f"recipe={folder / f'{family}.yaml'}", f"official={folder / 'checkpoint-19.pth'}"]
    said = export(load_recipe([*asked, f"out={folder / 'imported'}"], "export"))
    chosen = f"evaluate.export={folder / 'imported'}"
    return load_recipe([asked[0], chosen, "evaluate.batch=3"]), said


def scored(config: Config) -> tuple[dict[str, int], float]:
    """pid -> answer, and the loss."""
    answer_questions(config, ALONE)
    folder = output_folder(config)
    metrics = json.loads((folder / "metrics.json").read_text())
    return read_results(folder / "results.json"), metrics["loss"]


def built(config: Config) -> MultimodalLM:
    config.data.cache_features = False
    options: dict[str, Any] = {"dtype": torch.float32, "placement": Placement(), "world": ALONE}
    return build_caption_model(config, {}, {}, **options).model.eval()


def test_a_lavin_of_several_gpus_is_scored_as_the_same_weights_set_directly(tmp_path: Path) -> None:
    config = recipe(tmp_path, "lavin")
    torch.manual_seed(0)
    held = {
        name: 0.3 * torch.randn(each.shape)
        for name, each in built(config).named_parameters()
        if not name.startswith(("encoder.visual.", "llm."))
    }
    asked, said = imported(tmp_path, "lavin", {their_name(name): held[name] for name in held})
    assert "encoder.pixels=imagenet encoder.resize=squash lavin.routing=token" in said
    answers, loss = scored(asked)

    assert scored(set_directly(asked, tmp_path / "direct", held)) == (answers, loss)
    assert len(answers) == 10
    silent = {name: 0 * each for name, each in held.items()}
    assert scored(set_directly(asked, tmp_path / "silent", silent))[1] != loss


def set_directly(config: Config, folder: Path, tensors: dict[str, Tensor]) -> Config:
    """The recipe, set to score an export of tensors that have our names already."""
    details = {"fingerprint": "x", "phase": "llm_tune", "lora": None}
    save_export(folder, tensors, Progress(), details, config)
    settings = replace(config.evaluate, export=str(folder))
    return replace(config, name=folder.name, evaluate=settings)


def test_a_llama_adapter_is_scored_as_a_model_of_text_that_images_do_not_reach(
    tmp_path: Path,
) -> None:
    config = recipe(tmp_path, "llama_adapter")
    torch.manual_seed(0)
    prompts = torch.randn(LAYERS * LENGTH, tiny.WIDTH)
    gates = {f"layers.{i}.attention.gate": torch.randn(1, HEADS, 1, 1) for i in range(LAYERS)}
    asked, said = imported(tmp_path, "llama_adapter", {"adapter_query.weight": prompts, **gates})
    assert "images say nothing to it until st trains" in said
    answers, loss = scored(asked)
    assert len(answers) == 10 and len(set(answers.values())) > 1

    model: Any = built(config)
    with torch.no_grad():
        for i, late in enumerate(model.adaption.late):
            late.prompt.copy_(prompts[i * LENGTH : (i + 1) * LENGTH])
            late.gate.copy_(gates[f"layers.{i}.attention.gate"].flatten())
    assert loss == pytest.approx(loss_of_text(config, model), rel=1e-5)


@torch.no_grad()
def loss_of_text(config: Config, model: MultimodalLM) -> float:
    """Of the test questions, one by one, none with its image."""
    split = open_split(config, "test")
    rows = question_rows(config, load_tokenizer(config.llm))
    losses, count = 0.0, 0
    for item in items_in_order(split.in_order(1)):
        row = rows.training(Problem.of(split.reader.read(*item).data), image=False)
        ids, labels = torch.tensor([row.ids]), torch.tensor([row.labels])
        out = model(
            image_rows=torch.tensor([-1]),
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            labels=labels,
            weights=(labels != IGNORE).float(),
        )
        losses += float(F.cross_entropy(out.logits, out.labels, reduction="sum"))
        count += len(out.labels)
    return losses / count


def test_only_the_end_of_the_projection_is_imported_so_that_it_can_learn(tmp_path: Path) -> None:
    recipe(tmp_path, "llama_adapter")
    tensors = {f"layers.{i}.attention.gate": torch.ones(1, HEADS, 1, 1) for i in range(LAYERS)}
    tensors["adapter_query.weight"] = torch.ones(LAYERS * LENGTH, tiny.WIDTH)
    imported(tmp_path, "llama_adapter", tensors)
    held = ExportTensors(tmp_path / "imported")
    assert not held["st.down.weight"].any() and "st.up.weight" not in held


def test_a_checkpoint_of_another_llama_is_refused_in_one_line(tmp_path: Path) -> None:
    recipe(tmp_path, "llama_adapter")
    tensors = {f"layers.{i}.attention.gate": torch.ones(1, 8, 1, 1) for i in range(LAYERS)}
    tensors["adapter_query.weight"] = torch.ones(LAYERS * LENGTH, tiny.WIDTH)
    with pytest.raises(CheckpointError, match=r"gate is \(8,\), the model's is \(4,\)"):
        imported(tmp_path, "llama_adapter", tensors)
