"""Records that have no image: written, indexed, read and batched beside those that have one."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import webdataset

from pipeline.data.collate import ContrastiveCollator, LanguageCollator
from pipeline.data.faults import ContentFault
from pipeline.data.features import CachedFeatures, encode_shards, feature_files
from pipeline.data.index import load_index
from pipeline.data.loader import DecodedImages, Share, StepDataset, read_all
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.data.plan import Plan
from pipeline.data.reader import ShardReader
from pipeline.data.scan import build_index
from pipeline.data.shards import write_split
from tests.data.samples import DUMMY, EachCaption, jpeg, records
from tests.data.test_loader import layout, to_tensor

TEXT_ALONE = {f"rec{i:04d}" for i in range(12) if i % 2}


def write(folder: Path) -> Manifest:
    """Twelve records in three shards; the odd ones are text alone."""
    mixed = [replace(r, image=None) if r.key in TEXT_ALONE else r for r in records(12)]
    manifest, skipped = write_split(mixed, folder, seed=1, records_per_shard=4, workers=0)
    assert not skipped and manifest.records == 12
    return load_manifest(folder)


def dataset(manifest: Manifest, **changes) -> StepDataset:
    values = {
        "reader": ShardReader(manifest, max_pixels=10_000),
        "plan": Plan(manifest.sizes, seed=3, global_batch=4, lanes=2, window=4),
        "share": Share(0, 1, 1, 2),
        "collate": LanguageCollator((3, 4, 4), pad_id=0, dummy=DUMMY),
        "rows": EachCaption(layout),
        "images": DecodedImages(to_tensor, 4),
        **changes,
    }
    return StepDataset(**values)


def tar_of(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_the_reader_tells_text_alone_from_an_image(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    reader = ShardReader(manifest, max_pixels=10_000)
    raws = [reader.read(s, r) for s, size in enumerate(manifest.sizes) for r in range(size)]
    assert {raw.key for raw in raws if raw.image is None} == TEXT_ALONE
    for raw in raws:
        assert raw.data["captions"] == [f"number {int(raw.key[3:])}", "grün"]
        if raw.image is None:
            with pytest.raises(ContentFault, match=f"{raw.key}: no image"):
                reader.image(raw)
        else:
            assert reader.image(raw).size == (24, 16)


def test_webdataset_reads_records_of_text_alone(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    urls = [str(manifest.path(i)) for i in range(len(manifest.shards))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert {sample["__key__"] for sample in found if "jpg" not in sample} == TEXT_ALONE


def test_an_image_that_is_missing_is_still_a_fault(tmp_path: Path) -> None:
    tar = tar_of(
        tmp_path / "x.tar",
        ("said.json", b'{"caption": "text alone", "image": null}'),
        ("lost.json", b'{"caption": "its image got lost"}'),
        ("named.json", b'{"caption": "its image got lost", "image": "a.png"}'),
        ("broken.json", b"{"),
        ("empty.jpg", b""),
        ("empty.json", b'{"caption": "its image has no bytes"}'),
        # A column that moved into a member of its own leaves a null behind: the member counts.
        ("moved.jpg", jpeg()),
        ("moved.json", b'{"caption": "an image", "image": null}'),
    )
    index, faults = build_index(tar)
    assert {fault.key: fault.reason for fault in faults} == dict.fromkeys(
        ("lost", "named", "broken"), "no image member"
    )
    assert {index.key(i): int(index.image_offset[i]) >= 0 for i in range(len(index))} == {
        "said": False,
        "empty": True,
        "moved": True,
    }


def test_a_record_may_say_how_much_text_it_holds(tmp_path: Path) -> None:
    told = [7000, 0, -1, True, "9", 1 << 62]
    rows = [{"caption": "four", "image": None, "text_bytes": value} for value in told]
    members = [(f"{i}.json", json.dumps(row).encode()) for i, row in enumerate(rows)]
    index, _ = build_index(tar_of(tmp_path / "x.tar", *members))
    assert index.text_bytes.tolist() == [7000, 0, 4, 4, 4, 4]


def test_batches_mix_both_kinds_and_nothing_is_a_fault(tmp_path: Path) -> None:
    steps = list(read_all(dataset(write(tmp_path)), workers=0))
    assert not any(step.faults for step in steps)
    seen = {}
    for batch in (batch for step in steps for batch in step.batches):
        owners = [key for key in batch.keys for _ in range(2)]  # two captions each
        seen.update(zip(owners, (batch.image_rows >= 0).tolist(), strict=True))
        images = len(batch.keys) - len(TEXT_ALONE.intersection(batch.keys))
        assert len(batch.images) == max(images, 1)  # of text alone a black one, which no row uses
    assert seen == {f"rec{i:04d}": i % 2 == 0 for i in range(12)}


def test_cached_features_exist_for_images_only(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    encoded = encode_shards(
        ShardReader(manifest, max_pixels=10_000),
        DecodedImages(to_tensor, 4),
        lambda images: images.mean((2, 3)),
        tmp_path / "cache",
        shape=(3,),
        rank=0,
        ranks=1,
        workers=0,
    )
    assert encoded == 6
    collate = LanguageCollator((3,), pad_id=0, dummy=DUMMY)
    cached = dataset(
        manifest,
        images=CachedFeatures(feature_files(tmp_path / "cache", len(manifest.shards))),
        collate=collate,
    )
    steps = list(read_all(cached, workers=0))
    assert not any(step.faults for step in steps)
    rows = torch.cat([batch.image_rows for step in steps for batch in step.batches])
    assert len(rows) == 24 and int((rows < 0).sum()) == 12


def test_pairs_are_made_of_records_with_an_image_only(tmp_path: Path) -> None:
    collate = ContrastiveCollator(lambda texts: torch.ones(len(texts), 4), (3, 4, 4))
    steps = list(read_all(dataset(write(tmp_path), collate=collate), workers=0))
    keys = [key for step in steps for batch in step.batches for key in batch.keys]
    assert sorted(keys) == [f"rec{i:04d}" for i in range(0, 12, 2)]
    assert not any(step.faults for step in steps)


def test_the_index_of_a_written_shard_is_the_index_of_its_tar(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    again, _ = build_index(manifest.path(0))
    for name, column in vars(load_index(manifest, 0)).items():
        assert (column == getattr(again, name)).all(), name
