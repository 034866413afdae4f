"""What the tests of attacks share: a trap, the file that it makes, and a split of honest shards."""

from pathlib import Path

import pytest

from pipeline.data.shards import write_split
from tests.data.samples import records
from tests.faults.traps import Trap


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that a sprung trap makes."""
    return tmp_path / "sprung"


@pytest.fixture
def trap(mark: Path) -> Trap:
    return Trap(mark)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    write_split(records(4), tmp_path / "train", seed=0, records_per_shard=9, workers=0)
    return tmp_path / "train"
