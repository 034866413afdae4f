"""Shards that somebody else made and that lie on a server: fetched, indexed, checked, read."""

import dataclasses
import os
from pathlib import Path

import pytest

from pipeline.config import PrepareConfig
from pipeline.data.cache import cache_of
from pipeline.data.check import check_folder
from pipeline.data.manifest import load_manifest
from pipeline.data.prepare import prepare
from pipeline.errors import DataError
from tests.data.samples import make_tar
from tests.data.servers import FaultyServer, serve
from tests.data.test_foreign import members, read_all, run


@pytest.fixture
def server(tmp_path: Path):
    """Three shards of two records each below cc3m/."""
    for number in range(3):
        place = tmp_path / "served" / "cc3m" / f"{number:05d}.tar"
        make_tar(place, [*members(f"{number}0"), *members(f"{number}1")])
    with serve(tmp_path / "served") as running:
        yield running


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def config(server: FaultyServer, tmp_path: Path) -> PrepareConfig:
    return PrepareConfig(
        source="webdataset",
        shards=f"{server.url}/cc3m/{{00000..00002}}.tar",
        out=str(tmp_path / "made"),
        workers=0,
    )


def test_remote_shards_are_fetched_once_to_be_indexed_and_read(server, tmp_path) -> None:
    cfg = config(server, tmp_path)
    manifest = run(cfg)[0]["train"]
    assert manifest.at == f"{server.url}/cc3m" and manifest.records == 6
    assert len(read_all(tmp_path / "made" / "train")) == 6
    assert [manifest.path(i).read_bytes() for i in range(3)] == [
        (server.folder / "cc3m" / f"{i:05d}.tar").read_bytes() for i in range(3)
    ]
    run(cfg)  # what has not changed is not fetched again
    assert server.gets == {f"{i:05d}.tar": 1 for i in range(3)}


def test_a_shard_that_cannot_be_had_or_read_is_named_by_its_url(server, tmp_path) -> None:
    (server.folder / "cc3m" / "00000.tar").unlink()
    os.truncate(server.folder / "cc3m" / "00001.tar", 700)
    with pytest.raises(DataError) as caught:
        prepare(config(server, tmp_path), report=print)
    text = str(caught.value)
    assert text.startswith("2 of 3 shards cannot be used, the others are indexed")
    assert f"{server.url}/cc3m/00000.tar: cannot be fetched" in text
    assert f"{server.url}/cc3m/00001.tar" in text and f"{tmp_path}/cache/eim/" not in text


def test_a_shard_that_changed_on_the_server_is_indexed_again(server, tmp_path) -> None:
    cfg = config(server, tmp_path)
    run(cfg)
    make_tar(server.folder / "cc3m" / "00001.tar", [m for i in range(9) for m in members(f"x{i}")])
    assert run(cfg)[0]["train"].records == 2 + 9 + 2
    assert len(read_all(tmp_path / "made" / "train")) == 13


def test_with_hash_a_changed_shard_is_refused_when_it_is_read(server, tmp_path) -> None:
    run(dataclasses.replace(config(server, tmp_path), hash=True))
    path = server.folder / "cc3m" / "00001.tar"
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    fast = dataclasses.replace(cache_of(PrepareConfig()), tries=1)
    with pytest.raises(DataError, match=r"cc3m/00001.tar: .*SHA-256 is not the manifest's"):
        load_manifest(tmp_path / "made" / "train", fast).path(1)


def test_remote_shards_can_be_checked(server, tmp_path) -> None:
    run(config(server, tmp_path))
    assert check_folder(tmp_path / "made", workers=0, max_pixels=10**6, report=print)
