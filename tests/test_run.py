"""What is done with what a phase's folder holds already."""

from pathlib import Path

import pytest
import torch

from pipeline.config import Config
from pipeline.export_files import save_export
from pipeline.progress import Progress
from pipeline.run import what_lies_in


@pytest.mark.parametrize(
    ("exports", "finished", "outdated"),
    [
        ({}, False, False),
        ({"export": "ours"}, True, False),
        ({"export": "theirs"}, False, True),
        ({"segment-0": "ours"}, False, False),  # stopped between two segments
        ({"segment-0": "theirs"}, False, True),
        ({"segment-0": "ours", "export": "ours"}, True, False),
    ],
)
def test_what_another_recipe_has_left_is_never_taken_for_nothing(
    exports: dict[str, str], finished: bool, outdated: bool, tmp_path: Path
) -> None:
    for name, fingerprint in exports.items():
        details = {"fingerprint": fingerprint, "phase": "llm_tune"}
        tensors = {"st.a": torch.ones(1)}
        save_export(tmp_path / name, tensors, Progress(), details, Config())
    assert what_lies_in(tmp_path, "ours", Config(), ranks=1) == (finished, outdated)
