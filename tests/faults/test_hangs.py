"""Whatever happens to one rank, all others are gone in time, and the first cause comes last.

Every case is a launch of real processes with a real fault in one of them.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.ranks import FORWARD, STEP, Ended, case, run, small_recipe

pytestmark = pytest.mark.faults

TIMEOUT = 12.0  # seconds, of the recipe
START = 150.0  # until the fault at most, with two cores for two launches and whatever else
NEVER = ["st_align.epochs=1000"]
ZERO1 = ["st_align.ds_config=zero1"]

# fault -> (changes, who, what, exit codes of all ranks, words of the last line)
FAULTS: dict[str, tuple[list[str], int, str, list[int], str]] = {
    "raises": ([], 1, "raise", [1, 1, 1], "ValueError: a fault made on purpose"),
    "raises, main": (ZERO1, 0, "raise", [1, 1], "ValueError: a fault made on purpose"),
    "memory": ([], 1, "memory", [1, 1], "out of main memory; lower micro_batch"),
    "killed": ([], 1, "SIGKILL", [1, -9, 1], "is gone: killed"),
    "killed, main": (ZERO1, 0, "SIGKILL", [-9, 1, 1], "is gone: killed"),
    "stopped": ([], 2, "SIGSTOP", [1, 1, -9], "no sign of life for 1"),
    "stopped, main": ([], 0, "SIGSTOP", [-9, 1], "no sign of life for 1"),
    "hangs": (ZERO1, 1, "hang", [1, 1], "no progress for 1"),
    "holds the lock": ([], 1, "hold", [1, -9], "no sign of life for 1"),
}


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Ended, float]]:
    """What each led to, and after how many seconds; two at a time, since they mostly wait."""
    recipes = tmp_path_factory.mktemp("hangs")
    recipe = small_recipe(recipes, timeout=TIMEOUT)

    def launch(fault: str) -> tuple[Ended, float]:
        changes, who, what, codes, _ = FAULTS[fault]
        folder = recipes / fault.replace(", ", "-")
        folder.mkdir()
        arguments = [recipe, *NEVER, *changes, f"runs={folder / 'runs'}"]
        faulty = case(arguments, fault=(who, STEP, 3, what))
        ended = run(folder, [faulty], ranks=len(codes), seconds=START + 2 * TIMEOUT)
        happened = folder / "runs" / "tiny" / "happened"
        return ended, ended.at - happened.stat().st_mtime

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(FAULTS, pool.map(launch, FAULTS), strict=True))


@pytest.mark.parametrize("fault", FAULTS)
def test_all_ranks_end_in_time_and_the_first_cause_comes_last(
    launches: dict[str, tuple[Ended, float]], fault: str
) -> None:
    _, who, what, codes, words = FAULTS[fault]
    ended, seconds = launches[fault]
    print(f"{fault}: all ranks had ended after {seconds:.1f} s; {ended.last_line}")
    assert ended.codes == codes, ended.errors[-3000:]
    assert f"error: rank {who} (" in ended.last_line, ended.errors[-3000:]
    assert "at step 3: " in ended.last_line
    assert words in ended.last_line
    assert "; its samples: target-train-0000" in ended.last_line
    assert ended.errors.count("error: rank") == 1
    waits = TIMEOUT if words.startswith("no ") else 0.0  # the others are noticed at once
    assert seconds < waits + 6.0
    if what in ("hang", "hold"):
        assert "Thread 0x" in ended.errors  # faulthandler's stacks
        assert "cases_program.py" in ended.errors and "in happen" in ended.errors
    assert ("Traceback (most recent call last)" in ended.errors) == (what == "raise")


def test_a_loss_that_is_not_finite_skips_the_step_on_all_ranks_and_ends_the_run(
    tmp_path: Path,
) -> None:
    recipe = small_recipe(tmp_path)
    changes = ["name=nan", "st_align.max_skipped_steps=3", "st_align.checkpoint_every=2"]
    fault = (1, FORWARD, 20, "nan")  # from the middle of a step on
    ended = run(tmp_path, [case([recipe, *NEVER, *changes], fault=fault)], ranks=2, seconds=120)
    assert ended.codes == [2, 2], ended.errors[-3000:]
    phase = tmp_path / "runs" / "nan" / "st_align"
    lines = [json.loads(each) for each in (phase / "skipped_steps.jsonl").read_text().splitlines()]
    steps = [each["step"] for each in lines]
    assert len(steps) == 3 and steps == list(range(steps[0], steps[0] + 3))
    for line in lines:
        assert line["ranks"][1]["loss"] == "nan" and line["loss"] == "nan"
        assert isinstance(line["ranks"][0]["loss"], float)
        assert all(each["keys"] for each in line["ranks"])
    assert "st_align.max_skipped_steps=3" in ended.last_line
    assert lines[-1]["ranks"][0]["keys"][0] in ended.last_line
    last_good = max(phase.glob("checkpoints/step-*"))
    assert f"the last good checkpoint is {last_good}" in ended.last_line
