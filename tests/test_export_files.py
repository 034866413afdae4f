"""Exports, as the next phase sees them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config import Config, LLMTuneConfig
from pipeline.errors import CheckpointError
from pipeline.export_files import ExportTensors, check_weights, read_export, save_export
from pipeline.exports import WEIGHTS
from pipeline.progress import Progress
from pipeline.recipe import load_recipe


def test_an_export_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    tensors = {"st.a": torch.randn(3, 2), "llm.b": torch.randn(2).t()}
    progress = Progress(step=7, records_skipped={"bad JSON": 2})
    made_by = Config(name="made", llm_tune=LLMTuneConfig(lr=3e-6, stop_after=2))
    save_export(tmp_path / "export", tensors, progress, {"fingerprint": "f"}, made_by)
    file = str(tmp_path / "export" / "config.yaml")
    assert load_recipe([f"recipe={file}"]) == replace(made_by, recipe=file)
    found = read_export(tmp_path / "export")
    assert found is not None and found["fingerprint"] == "f"
    assert Progress(**found["progress"]) == progress
    loaded = ExportTensors(tmp_path / "export")
    assert all(torch.equal(loaded[name], each) for name, each in tensors.items())


def test_writing_again_replaces_the_whole_export(tmp_path: Path) -> None:
    target = tmp_path / "export"
    save_export(target, {"a": torch.zeros(1)}, Progress(), {"fingerprint": "1"}, Config())
    save_export(target, {"b": torch.zeros(1)}, Progress(), {"fingerprint": "2"}, Config())
    assert set(ExportTensors(target)) == {"b"}
    assert [each.name for each in tmp_path.iterdir()] == ["export"]


def test_a_late_older_attempt_does_not_cost_the_export_of_a_newer_one(tmp_path: Path) -> None:
    target = tmp_path / "export"

    def late() -> None:
        save_export(target, {"newer": torch.zeros(1)}, Progress(), {}, Config())

    with pytest.raises(FileNotFoundError):
        save_export(target, {"older": torch.zeros(1)}, Progress(), {}, Config(), guard=late)
    assert set(ExportTensors(target)) == {"newer"}
    check_weights(target)
    assert [each.name for each in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("there", [True, False])
def test_of_two_exports_that_appear_together_one_is_left_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    target, other = tmp_path / "export", tmp_path / "elsewhere" / "export"
    save_export(other, {"other": torch.zeros(1)}, Progress(), {}, Config())
    if there:
        save_export(target, {"before": torch.zeros(1)}, Progress(), {}, Config())
    rename = Path.rename

    def slow(self: Path, to: Path) -> Path:
        if to == target and other.exists():  # is faster, once
            rename(other, target)
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", slow)
    save_export(target, {"mine": torch.zeros(1)}, Progress(), {}, Config())
    assert set(ExportTensors(target)) == {"mine"}
    check_weights(target)
    assert {each.name for each in tmp_path.iterdir()} == {"export", "elsewhere"}


def test_half_an_export_is_none(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "export.json").write_text("{}")
    assert read_export(tmp_path / "export") is None


def test_damaged_exports_are_named_with_the_remedy(tmp_path: Path) -> None:
    target = tmp_path / "export"
    save_export(target, {"a": torch.zeros(9)}, Progress(), {}, Config())
    weights = target / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="run the phase that makes it again"):
        ExportTensors(target)
    (target / "export.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"export\.json cannot be read"):
        read_export(target)


def test_a_flipped_bit_in_the_weights_is_seen(tmp_path: Path) -> None:
    target = tmp_path / "export"
    save_export(target, {"a": torch.zeros(9)}, Progress(), {}, Config())
    check_weights(target)
    flip_last_bit(target)
    with pytest.raises(CheckpointError, match="is not what was written") as caught:
        check_weights(target)
    assert "\n" not in str(caught.value) and str(target / WEIGHTS) in str(caught.value)
    ExportTensors(target)  # which cannot see it
    details = json.loads((target / "export.json").read_text())
    del details["weights"]
    (target / "export.json").write_text(json.dumps(details))
    check_weights(target)  # of an older version


def flip_last_bit(export: Path) -> None:
    data = bytearray((export / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (export / WEIGHTS).write_bytes(data)
