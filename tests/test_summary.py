"""What a phase's summary says, whatever an earlier start has left of it."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.config import Config, LLMTuneConfig
from pipeline.explain.standing import ALONE
from pipeline.export_files import save_export
from pipeline.ownership import Ownership
from pipeline.progress import Progress
from pipeline.stopping import Stopped
from pipeline.summary import SUMMARY, complete_summary, noting_a_stop


@pytest.mark.parametrize("left", [None, "", "[]", '{"state": "stopped"}'])
def test_the_summary_of_a_finished_phase_is_there_after_any_crash(
    left: str | None, tmp_path: Path
) -> None:
    details = {"ran": {"ranks": 2}}
    save_export(tmp_path / "export", {"a": torch.ones(1)}, Progress(step=7), details, Config())
    if left is not None:
        (tmp_path / SUMMARY).write_text(left)
    complete_summary(tmp_path, LLMTuneConfig(), ALONE)
    written = json.loads((tmp_path / SUMMARY).read_text())
    assert (written["state"], written["steps"], written["ranks"]) == ("finished", 7, 2)


@pytest.mark.parametrize("left", ["", '{"steps": 5, "state": "stopped", "reason": "before"}'])
def test_a_stop_is_noted_beside_what_is_there(left: str, tmp_path: Path) -> None:
    (tmp_path / SUMMARY).write_text(left)
    here = (tmp_path, "llm_tune", Progress(step=5), Ownership(ALONE), ALONE)
    with pytest.raises(Stopped), noting_a_stop(*here):
        raise Stopped("SIGTERM")
    written = json.loads((tmp_path / SUMMARY).read_text())
    assert (written["state"], written["reason"], written["steps"]) == ("stopped", "SIGTERM", 5)
