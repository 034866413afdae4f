"""Plans and refusals as a user's own processes: what they print, their exit code, the disk."""

from pathlib import Path

import pytest

from tests.dist.launch import launch, succeeded
from tests.small import build
from tests.tiny import write_recipe

pytestmark = pytest.mark.dist


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize(("launcher", "ranks"), [("python", 1), ("warm", 2)])
def test_a_plan_is_printed_once_and_leaves_nothing(
    tmp_path: Path, launcher: str, ranks: int
) -> None:
    recipe = f"recipe={write_recipe(tmp_path)}"
    before = files(tmp_path)
    done = launch("stages/llm_tune.py", [recipe, "--plan"], ranks=ranks, launcher=launcher)
    text = succeeded(done)
    assert text.count("Plan of stages/llm_tune.py. Nothing is trained or written.") == 1
    assert f"{ranks} rank" in text and "made first" in text
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("stage", "change", "expected"),
    [
        ("encoder_adapt", "encoder_adapt.global_batch=64", "holds 40 records"),
        ("llm_tune", "data.val_split=vla", "there are test, train, val"),
        ("evaluate", "st.prefix_length=900", "exceed the language model's context of 128"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_code_2(
    tmp_path: Path, stage: str, change: str, expected: str
) -> None:
    recipe = f"recipe={build(tmp_path)}"
    before = files(tmp_path)
    arguments = [recipe, change, "evaluate.metrics=[quick_cider]"]
    done = launch(f"stages/{stage}.py", arguments, ranks=1)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and expected in line
    assert files(tmp_path) == before
