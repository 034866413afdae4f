"""What a node finds wrong with itself, and with the others' clocks."""

import shutil
import time
from collections import namedtuple
from pathlib import Path

import pytest

from pipeline import health
from pipeline.config import Config, DataConfig
from pipeline.data.shards import write_split
from pipeline.health import look
from tests.data.samples import records

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    for name in ("train", "val", "test"):
        options = {"seed": 1, "records_per_shard": 5, "workers": 0}
        write_split(records(7), tmp_path / "data" / name, **options)
    return Config(data=DataConfig(shards=str(tmp_path / "data")))


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, 10**11))


def found(tmp_path: Path, config: Config, *, gpus: int = 0, seconds: float = 20.0) -> str:
    look(tmp_path / "health", config, gpus=gpus, scratch=Path("/local"), seconds=seconds)
    return (tmp_path / "health" / "n7").read_text().strip()


def test_a_node_that_is_well_says_so(tmp_path: Path, config: Config) -> None:
    assert found(tmp_path, config) == "ok"


def test_all_that_is_wrong_is_said_in_one_line(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(place: Path) -> Usage:
        if place == Path("/local"):
            raise FileNotFoundError(2, "No such file or directory")
        return Usage(10**9, 0, 3 * 10**8)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    shard = tmp_path / "data" / "val" / "shard-000001.tar"
    shard.unlink()
    said = found(tmp_path, config, gpus=64)
    assert "\n" not in said
    assert said.startswith("/dev/shm has 0.3 GB free, less than 1; /local: No such file")
    assert f"{shard}: the manifest lists this shard, but it is not there" in said
    assert "GPUs, 64 expected" in said


def test_a_look_that_hangs_is_named_and_the_others_are_made(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "load_manifest", lambda *_: time.sleep(60))
    began = time.monotonic()
    said = found(tmp_path, config, gpus=64, seconds=1.0)
    assert "the shards: no answer within 1 s; " in said and "64 expected" in said
    assert time.monotonic() - began < 15


def test_a_clock_is_wrong_where_most_have_another_time() -> None:
    names, now = ["n1", "n1", "n2", "n2", "n3", "n3"], 1e9
    clocks = [now, now + 1, now - 99, now - 98, now + 29, now + 28]
    assert health._skewed(names, clocks) == {
        "n2": "its clock is -98 s off; set it by chrony or ntpd"
    }
