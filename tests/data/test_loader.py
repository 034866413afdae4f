"""From the plan to micro-batches: the same data on any ranks and workers, faults counted."""

import os
import pickle
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import disk
from pipeline.data.collate import LanguageCollator
from pipeline.data.faults import ContentFault
from pipeline.data.features import CachedFeatures, encode_shards, feature_files
from pipeline.data.loader import DecodedImages, Share, StepDataset, draw, iterate, read_all
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.data.plan import Plan
from pipeline.data.prompts import IGNORE, Row
from pipeline.data.reader import ShardReader
from pipeline.data.shards import write_split
from pipeline.data.sources.record import SourceRecord
from pipeline.errors import DataError
from tests.data.samples import DUMMY, EachCaption, jpeg

RECORDS, BATCH = 23, 6


class _File:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def __call__(self) -> tuple[bytes, str]:
        return self.data, "jpg"


def to_tensor(image: Image.Image) -> torch.Tensor:
    array = np.asarray(image.resize((4, 4)), dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1) / 255


def layout(text: str) -> Row:
    ids = [ord(letter) for letter in text] or [0]
    return Row([-1, *ids], [IGNORE, *ids])


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """23 records in three shards; number 5 is no image, number 7 is cut short."""
    records = []
    for i in range(RECORDS):
        data = jpeg((i * 10, 0, 0))
        data = b"not an image" if i == 5 else data[: len(data) // 2] if i == 7 else data
        texts = tuple(f"{i:02d}{'x' * (i % 4 + j)}" for j in range(3))
        records.append(SourceRecord(f"r{i:02d}", _File(data), texts, i, {}))
    folder = tmp_path_factory.mktemp("shards")
    write_split(records, folder, seed=0, records_per_shard=9, workers=0)
    return load_manifest(folder)


def dataset(manifest: Manifest, *, rank: int = 0, ranks: int = 1, micro: int = 2, **changes):
    plan = Plan(manifest.sizes, seed=3, global_batch=BATCH, lanes=2, window=4)
    values = {
        "reader": ShardReader(manifest, max_pixels=10_000),
        "plan": plan,
        "share": Share(rank, ranks, ranks, micro),
        "collate": LanguageCollator((3, 4, 4), pad_id=0, dummy=DUMMY),
        "rows": EachCaption(layout),
        "images": DecodedImages(to_tensor, 4),
        **changes,
    }
    return StepDataset(**values)


def contents(steps) -> list[list[tuple]]:
    """For each step the (key, texts) of its rows, whatever the micro-batches."""
    found = []
    for loaded in steps:
        rows = []
        for batch in loaded.batches:
            for row, image in zip(batch.input_ids, batch.image_rows, strict=True):
                text = "".join(chr(i) for i in row[1:] if i > 0)
                if batch.keys:
                    rows.append((batch.keys[int(image)], text))
        found.append(rows)
    return found


def test_every_usable_caption_once_an_epoch_and_faults_counted(manifest: Manifest) -> None:
    steps = list(read_all(dataset(manifest), workers=0))
    rows = [row for step in contents(steps) for row in step]
    assert len(rows) == len(set(rows)) == (RECORDS - 2) * 3
    faults = sum((each.faults for each in steps), Counter())
    assert faults == {"undecodable image": 1, "truncated image": 1}
    assert sum(each.records for each in steps) == RECORDS
    lines = [line for each in steps for line in each.examples]
    assert all("shard-" in line and ("r05" in line or "r07" in line) for line in lines)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 4), (2, 1), (3, 2), (5, 3), (16, 0)])
def test_ranks_and_workers_change_nothing_in_a_global_batch(
    manifest: Manifest, ranks: int, workers: int
) -> None:
    alone = [sorted(step) for step in contents(read_all(dataset(manifest), workers=0))]
    parts = [
        list(iterate(dataset(manifest, rank=r, ranks=ranks, micro=1), 0, 4, workers=workers))
        for r in range(ranks)
    ]
    together = [sorted(chain(*step)) for step in zip(*map(contents, parts), strict=True)]
    assert together == alone
    counts = [[len(loaded.batches) for loaded in part] for part in parts]
    assert all(each == counts[0] for each in counts)


def test_a_start_in_the_middle_gives_the_same_rest(manifest: Manifest) -> None:
    whole = contents(iterate(dataset(manifest), 0, 9, workers=0))
    assert contents(iterate(dataset(manifest), 5, 9, workers=0)) == whole[5:]
    assert [sorted(s) for s in whole[4:8]] != [sorted(s) for s in whole[:4]]  # another epoch


def test_one_caption_is_drawn_by_seed_epoch_and_key(manifest: Manifest) -> None:
    def rows(first: int, last: int) -> dict[str, str]:
        data = dataset(manifest, captions="one")
        return dict(chain(*contents(iterate(data, first, last, workers=0))))

    first = rows(0, 4)
    assert len(first) == RECORDS - 2
    assert rows(0, 4) == first
    assert rows(4, 8) != first
    assert {draw(0, epoch, "k", 3) for epoch in range(30)} == {0, 1, 2}


def test_strict_stops_at_the_first_fault_with_shard_key_and_cause(manifest: Manifest) -> None:
    with pytest.raises(DataError, match=r"shard-\d+.tar.*r0[57].*strict"):
        list(read_all(dataset(manifest, strict=True), workers=0))


def test_a_shard_that_is_gone_is_fatal_on_the_step_that_needs_it(
    manifest: Manifest, tmp_path: Path
) -> None:
    gone = Manifest(tmp_path, manifest.shards, manifest.skipped)
    reader = ShardReader(gone, max_pixels=10_000, retry_wait=0.0)
    loaded = dataset(gone, reader=reader)[0]
    assert loaded.fatal is not None and "shard-" in loaded.fatal


def test_features_are_computed_once_and_read_back(manifest: Manifest, tmp_path: Path) -> None:
    seen = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return images.flatten(1)[:, :5]

    reader = ShardReader(manifest, max_pixels=10_000)
    images = DecodedImages(to_tensor, 4)
    for rank in (0, 1):
        encode_shards(
            reader, images, encode, tmp_path, rank=rank, ranks=2, shape=(5,), workers=0, batch=4
        )
    assert sum(seen) == RECORDS - 2
    assert (
        encode_shards(reader, images, encode, tmp_path, rank=0, ranks=1, shape=(5,), workers=0) == 0
    )
    cached = CachedFeatures(feature_files(tmp_path, len(manifest.shards)))
    faults = 0
    for shard, size in enumerate(manifest.sizes):
        for record in range(size):
            raw = reader.read(shard, record)
            try:
                expected = images(reader, raw, shard, record).flatten()[:5]
            except ContentFault:
                with pytest.raises(ContentFault, match=raw.key):
                    cached(reader, raw, shard, record)
                faults += 1
                continue
            torch.testing.assert_close(cached(reader, raw, shard, record), expected)
    assert faults == 2
    cached_again = pickle.loads(pickle.dumps(cached))
    assert torch.equal(cached_again(reader, raw, shard, record), cached(reader, raw, shard, record))


def test_what_a_killed_process_was_writing_goes_and_what_another_writes_stays(
    manifest: Manifest, tmp_path: Path
) -> None:
    abandoned, written = (tmp_path / f".shard-000001.npy.{name}" for name in ("1", "2"))
    for each in (abandoned, written):
        each.write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    reader = ShardReader(manifest, max_pixels=10_000)
    encode_shards(
        reader,
        DecodedImages(to_tensor, 4),
        lambda images: images.flatten(1)[:, :5],
        tmp_path,
        rank=0,
        ranks=1,
        shape=(5,),
        workers=0,
    )
    shards = feature_files(tmp_path, len(manifest.shards))
    assert set(tmp_path.iterdir()) == {written, *shards}


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def of_another_shape(file: Path) -> None:
    np.save(file, np.zeros(3, dtype=np.float32))


def of_another_shard(file: Path) -> None:
    np.save(file, np.zeros((0, 5), dtype=np.float32))


def of_objects(file: Path) -> None:
    np.save(file, np.array([Attack()] * 9), allow_pickle=True)


def of_nothing(file: Path) -> None:
    file.write_bytes(b"")


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/eim-attack-ran; exit 1",)


@pytest.mark.parametrize(
    "harm", [cut_short, of_another_shape, of_another_shard, of_objects, of_nothing, Path.unlink]
)
def test_cached_features_that_are_no_longer_ours_are_an_error(
    manifest: Manifest, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    (file,) = feature_files(tmp_path, 1)
    np.save(file, np.zeros((9, 5), dtype=np.float32))
    harm(file)
    reader = ShardReader(manifest, max_pixels=10_000, retry_wait=0.0)
    with pytest.raises(DataError, match=r"cached features .*shard-000000\.npy .*5 tries"):
        CachedFeatures([file])(reader, reader.read(0, 0), 0, 0)
    assert not Path("/tmp/eim-attack-ran").exists()


def test_cached_features_are_read_again_when_the_disk_fails_once(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = feature_files(tmp_path, 1)
    np.save(file, np.arange(45, dtype=np.float32).reshape(9, 5))
    reader = ShardReader(manifest, max_pixels=10_000, retry_wait=0.0)
    raw, cached = reader.read(0, 3), CachedFeatures([file])
    real, calls = disk.read_at, iter(range(99))

    def read_at(*arguments: int) -> bytes:
        if next(calls) % 3 == 0:
            raise OSError(5, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(disk, "read_at", read_at)
    assert cached(reader, raw, 0, 3).tolist() == [15, 16, 17, 18, 19]
    assert reader.retried > 0
