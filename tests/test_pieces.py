"""Which pieces of a run a job script need not start."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.config import Config
from pipeline.export_files import save_export
from pipeline.pieces import pieces_done, run_folder, steps_done
from pipeline.progress import Progress
from pipeline.recipe import load_recipe, save_recipe
from tests.tiny import write_recipe


def export(config: Config, phase: str, step: int) -> None:
    folder = run_folder(config) / phase / "export"
    save_export(folder, {"a": torch.ones(1)}, Progress(step=step), {}, config)


def scored(config: Config) -> Path:
    folder = run_folder(config) / "evaluate" / "test"
    folder.mkdir(parents=True, exist_ok=True)
    save_recipe(config, folder / "config.yaml")
    return folder / "config.yaml"


def test_a_piece_is_done_once_this_very_recipe_has_made_it(tmp_path: Path) -> None:
    config = load_recipe([f"recipe={write_recipe(tmp_path)}", "encoder_adapt.enabled=false"])
    assert pieces_done(config) == ["encoder_adapt"] and steps_done(config) == 0
    (run_folder(config) / "st_align/checkpoints/step-000007").mkdir(parents=True)
    (run_folder(config) / "st_align/checkpoints/step-000009.old").mkdir()
    assert pieces_done(config) == ["encoder_adapt"] and steps_done(config) == 7
    export(config, "st_align", 8)
    export(config, "llm_tune", 5)
    assert pieces_done(config) == ["encoder_adapt", "st_align", "llm_tune"]
    assert steps_done(config) == 13
    scored(config)
    assert pieces_done(config) == ["encoder_adapt", "st_align", "llm_tune", "evaluate"]
    other = replace(config, seed=1)
    assert pieces_done(other) == ["encoder_adapt"]  # its stages refuse what is there


def test_a_job_with_another_scratch_folder_does_nothing_again(tmp_path: Path) -> None:
    first, second = (
        load_recipe(
            [f"recipe={write_recipe(tmp_path)}", f"data.stage={place}/1", f"data.cache={place}/2"]
        )
        for place in ("/scratch/job-7", "/scratch/job-8")
    )
    for phase in ("encoder_adapt", "st_align", "llm_tune"):
        export(first, phase, 1)
    scored(first)
    assert pieces_done(second) == ["encoder_adapt", "st_align", "llm_tune", "evaluate"]


def test_scores_of_an_older_model_are_not_done(tmp_path: Path) -> None:
    config = load_recipe([f"recipe={write_recipe(tmp_path)}"])
    file = scored(config)
    for phase in ("encoder_adapt", "st_align", "llm_tune"):
        export(config, phase, 1)
    os.utime(file, (0, 0))
    assert "evaluate" not in pieces_done(config)
    scored(config)
    assert "evaluate" in pieces_done(config)


def test_a_baseline_is_another_run(tmp_path: Path) -> None:
    config = load_recipe([f"recipe={write_recipe(tmp_path)}"])
    export(config, "llm_tune", 3)
    baseline = replace(config, baseline=True)
    assert run_folder(baseline).name == "tiny-baseline"
    assert pieces_done(baseline) == [] and steps_done(baseline) == 0
