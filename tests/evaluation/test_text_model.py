"""LLaMA-Adapter V1's published text model: imported, and scored without an image tower or an ST."""

import shutil
from pathlib import Path

import pytest
import torch

from pipeline.config import Config
from pipeline.data.prepare import prepare
from pipeline.dist import World
from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluation.finishing import output_folder
from pipeline.evaluation.questions import answer_questions
from pipeline.evaluation.scienceqa import read_results
from pipeline.explain.stages import explain_evaluate
from pipeline.interchange import import_official
from pipeline.preflight import check
from pipeline.recipe import load_recipe
from tests.small import weights
from tests.tiny import write_questions

ALONE = World(0, 1, 0, 1, torch.device("cpu"))
WIDTH, HEADS, LAYERS, LENGTH = 32, 2, 2, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions, an LLM, no CLIP at all, and checkpoints as the reference writes them, imported."""
    made = tmp_path_factory.mktemp("text")
    written = write_questions(made, "llama_adapter", make_missing=False)
    config = load_recipe([f"recipe={written}", "llama_adapter.sees_images=false"])
    for entry in config.prepare.values():
        prepare(entry, report=lambda line: None)
    weights(config, Path(config.pretrain.out))
    shutil.rmtree(Path(config.pretrain.out, "clip"))
    torch.manual_seed(0)
    prompts = torch.randn(LAYERS * LENGTH, WIDTH)
    for name, opened in (("open", 2.0), ("closed", 0.0)):
        gates = {
            f"layers.{i}.attention.gate": torch.full((1, HEADS, 1, 1), opened)
            for i in range(LAYERS)
        }
        torch.save({"adapter_query.weight": prompts, **gates}, made / f"{name}.pth")
        said = import_official(config, made / f"{name}.pth", made / name)
        assert "LLaMA-Adapter V1 (text)" in said and "images" not in said
    return made


def recipe(folder: Path, export: str, *arguments: str) -> Config:
    exported = f"evaluate.export={folder / export}"
    return load_recipe([f"recipe={folder / 'llama_adapter.yaml'}", exported, *arguments])


def test_it_is_scored_with_the_table_of_the_benchmark(folder: Path) -> None:
    losses = []
    for export in ("open", "closed"):
        config = recipe(folder, export, "llama_adapter.sees_images=false", f"name={export}")
        check(config, ALONE, until="evaluate")
        result = answer_questions(config, ALONE)
        assert len(read_results(output_folder(config) / "results.json")) == 10
        header, numbers, *rest = result["table"].splitlines()
        assert header.split()[-1] == "Avg" and float(numbers.split()[-1]) % 10 == 0
        assert "5 questions have an image, which this model does not see" in rest
        losses.append(result["loss"])
    assert abs(losses[0] - losses[1]) > 1e-3  # the imported prompts are in use


def test_its_own_recipe_answers_too(folder: Path) -> None:
    """What `official=` leaves beside the tensors is that of the text model."""
    config = load_recipe([f"recipe={folder / 'open' / 'config.yaml'}", "name=own"])
    config.evaluate.export = str(folder / "open")
    check(config, ALONE, until="evaluate")
    assert answer_questions(config, ALONE)["records"] == 10


def test_a_recipe_with_eyes_is_told_what_to_set(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no ST .* llama_adapter\.sees_images=false$"):
        answer_questions(recipe(folder, "open"), ALONE)


def test_without_eyes_there_is_nothing_to_adapt_or_align(folder: Path) -> None:
    config = recipe(folder, "open", "llama_adapter.sees_images=false")
    config.evaluate.export = None
    for name, part in (("encoder_adapt", "image tower to adapt"), ("st_align", "ST to align")):
        with pytest.raises(ConfigError, match=rf"{name}\.enabled=true: .* has no {part}"):
            check(config, ALONE, until="llm_tune")
        getattr(config, name).enabled = False


def test_the_plan_names_no_encoder(folder: Path) -> None:
    text = explain_evaluate(recipe(folder, "open", "llama_adapter.sees_images=false"), ALONE)
    assert "none: this model sees no images" in text and "To be mended" not in text
