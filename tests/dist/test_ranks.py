"""Training goes on from what another number of ranks has written, under every ZeRO stage.

Several groups that decay or not, one of them a single number, an average over steps, and under
ZeRO-3 sub-groups that differ between numbers of ranks: what DeepSpeed's universal checkpoints lose.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.dist.launch import launch, succeeded
from tests.dist.ranks_program import PRECISIONS

pytestmark = pytest.mark.dist
STAGES = (0, 1, 2, 3)


def run(folder: Path, ranks: int, *actions: str) -> None:
    done = launch("tests/dist/ranks_program.py", [str(folder), *actions], ranks=ranks)
    (folder / f"output-{ranks}-{actions[0].replace(':', '-')}.txt").write_text(succeeded(done))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole runs, and what 2 ranks have written gone on from by 1 and by 3."""
    folder = tmp_path_factory.mktemp("ranks")
    run(folder, 2, "write")
    run(folder, 3, "continue:2")
    run(folder, 1, "write", "continue:2")
    return folder


@pytest.fixture(scope="module")
def more(written: Path) -> Path:
    """What 1 and 4 ranks have written, gone on from by 2; and what 2 have, by 4."""
    run(written, 4, "write", "continue:2")
    run(written, 2, "continue:1", "continue:4")
    return written


def check(folder: Path, ranks: int, origin: int, stage: int, precision: str) -> None:
    """As if the first ranks had gone on: within rounding in fp32, nearly so in bf16.

    A loss in bf16 is a number of 8 bits for each record, whose sum depends on who adds it up.
    """
    near = 1e-6 if precision == "fp32" else 5e-3
    whole, other = (
        json.loads((folder / f"{name}-{stage}-{precision}.json").read_text())
        for name in (f"{origin}-from-start", f"{ranks}-from-{origin}")
    )
    assert other == pytest.approx(whole, rel=near) and len(other) == 3
    end, there = (
        load_file(folder / f"{name}-{stage}-{precision}.safetensors")
        for name in (f"{origin}-from-start", f"{ranks}-from-{origin}")
    )
    assert end.keys() == there.keys() and len(end) == 7
    for name, tensor in end.items():
        assert float((tensor - there[name]).abs().max()) < near, name


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", [1, 3])
def test_two_ranks_become_one_or_three(
    written: Path, ranks: int, stage: int, precision: str
) -> None:
    check(written, ranks, 2, stage, precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("ranks", "origin"), [(4, 2), (2, 4), (2, 1)])
def test_other_numbers_of_ranks(
    more: Path, ranks: int, origin: int, stage: int, precision: str
) -> None:
    check(more, ranks, origin, stage, precision)


def test_nothing_of_the_rewriting_stays(written: Path) -> None:
    assert not list(written.rglob(".writing-*"))
