"""Exports and content hashes, as the next phase sees them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import checkpoint as ckpt
from pipeline.checkpoint import Progress
from pipeline.config import Config, LLMTuneConfig
from pipeline.errors import CheckpointError
from pipeline.recipe import load_recipe


def test_an_export_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    tensors = {"st.a": torch.randn(3, 2), "llm.b": torch.randn(2).t()}
    progress = Progress(step=7, records_skipped={"bad JSON": 2})
    made_by = Config(name="made", llm_tune=LLMTuneConfig(lr=3e-6, stop_after=2))
    ckpt.save_export(tmp_path / "export", tensors, progress, {"fingerprint": "f"}, made_by)
    file = str(tmp_path / "export" / "config.yaml")
    assert load_recipe([f"recipe={file}"]) == replace(made_by, recipe=file)
    found = ckpt.read_export(tmp_path / "export")
    assert found is not None and found["fingerprint"] == "f"
    assert Progress(**found["progress"]) == progress
    loaded = ckpt.ExportTensors(tmp_path / "export")
    assert all(torch.equal(loaded[name], each) for name, each in tensors.items())


def test_writing_again_replaces_the_whole_export(tmp_path: Path) -> None:
    target = tmp_path / "export"
    ckpt.save_export(target, {"a": torch.zeros(1)}, Progress(), {"fingerprint": "1"}, Config())
    ckpt.save_export(target, {"b": torch.zeros(1)}, Progress(), {"fingerprint": "2"}, Config())
    assert set(ckpt.ExportTensors(target)) == {"b"}
    assert [each.name for each in tmp_path.iterdir()] == ["export"]


def test_half_an_export_is_none(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "export.json").write_text("{}")
    assert ckpt.read_export(tmp_path / "export") is None


def test_damaged_exports_are_named_with_the_remedy(tmp_path: Path) -> None:
    target = tmp_path / "export"
    ckpt.save_export(target, {"a": torch.zeros(9)}, Progress(), {}, Config())
    weights = target / ckpt.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="run the phase that makes it again"):
        ckpt.ExportTensors(target)
    (target / "export.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"export\.json cannot be read"):
        ckpt.read_export(target)


def test_only_complete_checkpoints_of_the_segment_count(tmp_path: Path) -> None:
    for step in (5, 10, 20):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "state.json").write_text(
            json.dumps({"fingerprint": "f", "ranks": 1})
        )
    (tmp_path / "step-000015").mkdir()
    (tmp_path / ".writing-step-000030").mkdir()
    newest = ckpt.newest_checkpoint(tmp_path, 0, 19)
    assert newest is not None and newest.name == "step-000010"
    assert ckpt.newest_checkpoint(tmp_path, 20, 30) is None
    assert ckpt.holds_other_checkpoints(tmp_path, "other")
    assert not ckpt.holds_other_checkpoints(tmp_path, "f")
    assert ckpt.holds_other_checkpoints(tmp_path, "f", ranks=2)
    (tmp_path / "step-000020" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="step-000020 is damaged"):
        ckpt.holds_other_checkpoints(tmp_path, "f")


def test_content_decides_about_weights_not_their_place(tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    for name, content in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w").write_text(content)
    a, b, c = (ckpt.content_hash(tmp_path / name, cache) for name in "abc")
    assert a == b != c
    (tmp_path / "b" / "w").write_text("changed")
    assert ckpt.content_hash(tmp_path / "b", cache) != a
    assert ckpt.content_hash(Path("gpt2"), cache) == "gpt2"


def test_tensor_hash_sees_every_value() -> None:
    a = {"x": torch.zeros(3), "y": torch.ones(2)}
    b = {"y": torch.ones(2), "x": torch.tensor([0.0, 0.0, 1e-6])}
    assert ckpt.tensor_hash(a) == ckpt.tensor_hash(dict(reversed(a.items()))) != ckpt.tensor_hash(b)
