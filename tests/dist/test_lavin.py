"""LaVIN under ZeRO-3 that really partitions: a rank without any image, against one process."""

import json
from pathlib import Path

import pytest

from tests.dist.launch import launch, succeeded
from tests.models import tiny
from tests.tiny import TIGHT_ZERO3

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each rank found, on one and on two ranks, as JSON files."""
    made = tmp_path_factory.mktemp("lavin")
    tiny.qwen2().save_pretrained(made / "llm")
    (made / "tight.json").write_text(json.dumps(TIGHT_ZERO3))
    for ranks in (1, 2):
        succeeded(launch("tests/dist/lavin_program.py", [str(made)], ranks=ranks))
    return made


def found(folder: Path, name: str) -> list[dict]:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize("way", ["plain", "saving"])
def test_a_rank_without_an_image_trains_as_one_process_does(folder: Path, way: str) -> None:
    (alone,) = found(folder, "plain-1")
    first, second = found(folder, f"{way}-2")
    losses = [a + b for a, b in zip(first["losses"], second["losses"], strict=True)]
    assert losses == pytest.approx(alone["losses"], rel=1e-5)
    assert first["norms"] == second["norms"]
    assert first["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    assert losses[-1] < losses[0]


def test_ranks_with_and_without_images_answer_as_one_process_does(folder: Path) -> None:
    (alone,) = found(folder, "plain-1")
    two = [token for rank in found(folder, "plain-2") for token in rank["answers"]]
    assert two == alone["answers"]
