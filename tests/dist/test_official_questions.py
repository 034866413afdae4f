"""A checkpoint of LaVIN's reference, from a file to the score table, as a user's own processes."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from tests.dist.launch import launch, succeeded
from tests.evaluation.test_imported import built, recipe
from tests.models.test_imports import their_name

pytestmark = pytest.mark.dist


def test_an_official_file_is_imported_and_scored_without_training(tmp_path: Path) -> None:
    config = recipe(tmp_path, "lavin")  # its LLM is a folder of Meta's, in two shards
    torch.manual_seed(0)
    tensors = {
        their_name(name): 0.3 * torch.randn(each.shape)
        for name, each in built(config).named_parameters()
        if not name.startswith(("encoder.visual.", "llm."))
    }
    file, out = tmp_path / "checkpoint-19.pth", tmp_path / "imported"
    torch.save({"model": tensors, "epoch": 19, "args": Namespace(lr=0.1)}, file)
    arguments = [f"recipe={tmp_path / 'lavin.yaml'}"]
    done = launch(
        "stages/export.py",
        [*arguments, f"official={file}", f"out={out}"],
        ranks=1,
    )
    assert f"{len(tensors)} tensors of LaVIN" in succeeded(done)
    scored = [*arguments, f"evaluate.export={out}"]
    done = launch("stages/evaluate.py", scored, ranks=1)
    assert "G7-12     Avg" in succeeded(done)
    results = tmp_path / "runs" / "lavin" / "evaluate" / "test" / "results.json"
    assert len(json.loads(results.read_text())["results"]) == 10
    assert not (tmp_path / "runs" / "lavin" / "llm_tune").exists()


def test_a_file_that_lacks_tensors_is_one_line_that_names_them(tmp_path: Path) -> None:
    recipe(tmp_path, "lavin")
    torch.save({"module.adapter_modality_embedding.weight": torch.ones(2, 16)}, tmp_path / "l.pth")
    arguments = [f"recipe={tmp_path / 'lavin.yaml'}", f"official={tmp_path / 'l.pth'}"]
    done = launch("stages/export.py", [*arguments, f"out={tmp_path / 'x'}"], ranks=1)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("error: ")]
    assert "it lacks adapters.layers.0.down.bias, " in line and "st.up.weight" in line
    assert not (tmp_path / "x").exists()
