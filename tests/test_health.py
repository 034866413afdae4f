"""What a node finds wrong with itself, and with the others' clocks."""

import shutil
import socket
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import NoReturn

import pytest

from pipeline import health
from pipeline.config import Config, DataConfig
from pipeline.data.shards import write_split
from pipeline.errors import ConfigError
from pipeline.health import judge, look, meet
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
    answers = threading.Event()

    def hang(*_: object) -> NoReturn:
        answers.wait(60)
        raise FileNotFoundError

    monkeypatch.setattr(health, "load_manifest", hang)
    began = time.monotonic()
    said = found(tmp_path, config, gpus=64, seconds=1.0)
    answers.set()
    assert "the shards: no answer within 1 s; " in said and "64 expected" in said
    assert time.monotonic() - began < 15


def test_a_clock_is_wrong_where_most_have_another_time() -> None:
    names, now = ["n1", "n1", "n2", "n2", "n3", "n3"], 1e9
    clocks = [now, now + 1, now - 99, now - 98, now + 29, now + 28]
    assert health._skewed(names, clocks) == {
        "n2": "its clock is -98 s off; set it by chrony or ntpd"
    }


def ill(folder: Path, nodes: list[str], ranks: list[int]) -> dict[str, str]:
    """Who is called ill once these ranks alone, one on a node, have tried to meet and failed."""
    for node in nodes:
        (folder / node).write_text("ok\n")
    with socket.socket() as nowhere, pytest.MonkeyPatch.context() as patch:
        nowhere.bind(("127.0.0.1", 0))  # and never listens
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        patch.setenv("WORLD_SIZE", str(len(nodes)))
        for rank in ranks:
            patch.setenv("MASTER_PORT", str(nowhere.getsockname()[1] if rank else 0))
            patch.setenv("RANK", str(rank))
            with pytest.raises(ConfigError):
                meet(folder, nodes, 1.0)
    judge(folder, nodes)
    found = {node: (folder / node).read_text().strip() for node in nodes}
    return {node: said for node, said in found.items() if said != "ok"}


@pytest.mark.parametrize("ranks", [[1, 2], [1, 2, 0]], ids=["silent", "waiting"])
def test_the_first_node_is_ill_where_no_other_reaches_it(tmp_path: Path, ranks: list[int]) -> None:
    assert ill(tmp_path, ["n1", "n2", "n3"], ranks) == {"n1": "no other node reaches it"}


@pytest.mark.parametrize("nodes", [["n1", "n2", "n3"], ["n1", "n2"]])
def test_the_one_node_that_does_not_reach_the_first_is_ill(
    tmp_path: Path, nodes: list[str]
) -> None:
    assert ill(tmp_path, nodes, [1]) == {"n2": "it does not reach n1 within 1 s"}
