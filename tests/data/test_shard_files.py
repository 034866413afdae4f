"""Shards on disks that fail: what passes is mended and counted, what stays is an error that names
shard and record, and never does another sample come in silence.
"""

import errno
import io
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import PrepareConfig
from pipeline.data import disk
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.data.prepare import prepare
from pipeline.data.reader import RawRecord, ShardReader
from pipeline.data.shards import write_split
from pipeline.errors import DataError
from tests.data.samples import jpeg, make_tar, records

RECORDS = 12


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_split(records(RECORDS), tmp_path / "a", seed=1, records_per_shard=6, workers=0)[0]


def reader_of(manifest: Manifest) -> ShardReader:
    return ShardReader(manifest, max_pixels=10**6, retry_wait=0.0)


def everything(reader: ShardReader) -> list[RawRecord]:
    sizes = reader.manifest.sizes
    return [reader.read(shard, number) for shard in range(len(sizes)) for number in range(6)]


class Disk:
    """The real disk, but for every `every`-th call of one kind, which fails with `number`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: str, number: int, every: int) -> None:
        self.calls, self.failures = 0, 0
        self._real: Callable[..., object] = getattr(disk, kind)
        self._error, self._every = number, every
        monkeypatch.setattr(disk, kind, self)

    def __call__(self, *arguments: object) -> object:
        self.calls += 1
        if self.calls % self._every == 0:
            self.failures += 1
            raise OSError(self._error, os.strerror(self._error))
        return self._real(*arguments)


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize(("kind", "every"), [("read_at", 5), ("open_file", 2), ("read_whole", 2)])
def test_what_fails_once_is_read_again_and_counted(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, error: int, kind: str, every: int
) -> None:
    expected = everything(reader_of(manifest))
    reader = reader_of(manifest)
    faulty = Disk(monkeypatch, kind, error, every)
    assert everything(reader) == expected
    assert reader.retried == faulty.failures > 0


def test_a_stale_file_is_opened_again(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of(manifest)
    first = reader.read(0, 0)
    stale = {reader._files._open(0)}
    real = disk.read_at

    def read_at(descriptor: int, offset: int, size: int) -> bytes:
        if descriptor in stale:
            stale.clear()  # the number may be given to the next file
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(descriptor, offset, size)

    monkeypatch.setattr(disk, "read_at", read_at)
    assert reader.read(0, 0) == first
    assert reader.retried == 1


def test_waits_grow_and_end(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    Disk(monkeypatch, "read_at", errno.EIO, every=1)
    reader = ShardReader(manifest, max_pixels=1)
    with pytest.raises(
        DataError, match=r"shard-000000\.tar: record rec\d+: .* 5 tries \(Input/out"
    ):
        reader.read(0, 0)
    assert waits == [0.5, 1.0, 2.0, 4.0]


def delete(path: Path, other: Path) -> None:
    path.unlink()


def truncate(path: Path, other: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def put_another_in_its_place(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def overwrite_with_another_of_its_size(path: Path, other: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(other.read_bytes().ljust(size, b"\0")[:size])


def fill_with_nothing(path: Path, other: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    "harm",
    [
        delete,
        truncate,
        put_another_in_its_place,
        overwrite_with_another_of_its_size,
        fill_with_nothing,
    ],
)
@pytest.mark.parametrize("is_open", [True, False])
def test_a_shard_that_changes_gives_the_same_records_or_an_error(
    manifest: Manifest, tmp_path: Path, harm: Callable[[Path, Path], None], is_open: bool
) -> None:
    others, _ = write_split(
        records(RECORDS), tmp_path / "b", seed=2, records_per_shard=6, workers=0
    )
    expected = everything(reader_of(manifest))
    reader = reader_of(manifest)
    if is_open:
        reader.read(0, 0)
    harm(manifest.path(0), others.path(0))
    same, refused = 0, 0
    for number in range(6):
        try:
            assert reader.read(0, number) == expected[number]
            same += 1
        except DataError as error:
            assert "shard-000000.tar: record rec" in str(error)
            refused += 1
    if is_open and harm is delete:
        assert same == 6  # the system keeps what is open
    else:
        assert refused
    assert everything(reader_of(others))[:6] != expected[:6]  # the other is another one


def test_a_shard_that_may_no_longer_be_read_is_named(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = reader_of(manifest)
    reader.keys(np.array([[1, 0]]))  # the index is here
    Disk(monkeypatch, "open_file", errno.EACCES, every=1)
    with pytest.raises(DataError, match=r"shard-000001\.tar: record .*Permission denied"):
        reader.read(1, 0)


def test_a_foreign_shard_that_was_touched_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    make_tar(tmp_path / "tars" / "0.tar", [("a.jpg", jpeg()), ("a.txt", b"text")])
    manifest = indexed(tmp_path)
    os.utime(tmp_path / "tars" / "0.tar", ns=(1, 1))
    with pytest.raises(DataError, match="changed after it was indexed"):
        reader_of(manifest).read(0, 0)


KEYS = ("a" * 99, "b" * 80 + "/" + "c" * 60, "grün", "d" * 96, "./e/f")
NAMES = [
    *((tarfile.PAX_FORMAT, key) for key in KEYS),
    *((tarfile.GNU_FORMAT, key) for key in KEYS),
    *((tarfile.USTAR_FORMAT, key) for key in KEYS[1:]),  # which has no place for the first
]


@pytest.mark.parametrize(("form", "key"), NAMES)
def test_members_of_any_name_are_found(tmp_path: Path, form: int, key: str) -> None:
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "0.tar", "w", format=form) as tar:
        for name, content in ((f"{key}.jpg", jpeg()), (f"{key}.txt", b"text")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    reader = reader_of(indexed(tmp_path))
    raw = reader.read(0, 0)
    assert (raw.key, raw.image, raw.data) == (key, jpeg(), {"captions": ["text"]})


def indexed(folder: Path) -> Manifest:
    cfg = PrepareConfig(
        source="webdataset", shards=str(folder / "tars"), out=str(folder / "out"), workers=0
    )
    prepare(cfg, report=lambda _: None)
    return load_manifest(folder / "out" / "train")
