"""Shards: the same bytes always, restartable, checked, and readable by webdataset itself."""

import hashlib
import tarfile
from collections import Counter
from dataclasses import replace

import pytest
import webdataset

from pipeline.data.faults import ContentFault
from pipeline.data.index import load_index
from pipeline.data.manifest import load_manifest
from pipeline.data.reader import ShardReader
from pipeline.data.scan import build_index
from pipeline.data.shards import write_part, write_split
from pipeline.errors import DataError
from tests.data.samples import records

FAULTY = {"missing": {3, 17}, "silent": {5}}


def write(folder, count=25, **options):
    kwargs = {"seed": 7, "records_per_shard": 10, "workers": 0, **options}
    return write_split(records(count, **FAULTY), folder, **kwargs)


def content(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_the_same_records_give_the_same_bytes_with_any_number_of_workers(tmp_path):
    done = []
    manifest, faults = write(tmp_path / "alone", progress=done.append)
    write(tmp_path / "two", workers=2)
    assert content(tmp_path / "alone") == content(tmp_path / "two")
    assert Counter({"missing image": 2, "no captions": 1}) == manifest.skipped
    assert {(f.reason, f.key) for f in faults} == {
        ("missing image", "rec0003"),
        ("missing image", "rec0017"),
        ("no captions", "rec0005"),
    }
    assert manifest.records == 22 and len(manifest.shards) == 3 and sum(done) == 25
    assert load_manifest(tmp_path / "two").fingerprint == manifest.fingerprint
    assert write(tmp_path / "other", seed=8)[0].fingerprint != manifest.fingerprint


def test_several_machines_write_parts_which_one_last_run_finds_and_completes(tmp_path):
    write(tmp_path / "alone")
    kwargs = {"seed": 7, "records_per_shard": 10, "workers": 0, "parts": 2}
    shards = [
        write_part(records(25, **FAULTY), tmp_path / "many", part=part, **kwargs) for part in (1, 0)
    ]
    assert shards == [(1, 2), (2, 0)] and not (tmp_path / "many" / "manifest.json").exists()
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "many").glob("*.tar")}
    write(tmp_path / "many")
    assert content(tmp_path / "alone") == content(tmp_path / "many")
    assert written == {p: p.stat().st_mtime_ns for p in written}


def test_records_with_a_fault_leave_no_gaps_in_the_shards(tmp_path):
    given = list(records(100))
    broken = [replace(r, fault=ContentFault("no caption", key=r.key)) for r in given[:75]]
    done = []
    manifest, faults = write_split(
        [*broken, *given[75:]],
        tmp_path,
        seed=7,
        records_per_shard=10,
        workers=0,
        progress=done.append,
    )
    assert [shard.records for shard in manifest.shards] == [10, 10, 5]
    assert manifest.skipped == {"no caption": 75} and sum(done) == 100
    assert {fault.key for fault in faults} == {r.key for r in broken}


def test_a_member_costs_no_more_than_its_header_and_its_blocks(tmp_path):
    manifest, _ = write_split(records(10), tmp_path, seed=7, records_per_shard=10, workers=0)
    with tarfile.open(manifest.path(0)) as tar:
        blocks = sum(512 + -(-member.size // 512) * 512 for member in tar)
    assert manifest.bytes <= blocks + tarfile.RECORDSIZE


def test_a_restart_writes_only_what_is_missing_or_damaged(tmp_path):
    write(tmp_path)
    before, kept = content(tmp_path), (tmp_path / "shard-000000.tar").stat().st_mtime_ns
    (tmp_path / "shard-000002.tar").unlink()
    damaged = tmp_path / "shard-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    (tmp_path / "manifest.json").unlink()
    (tmp_path / ".shard-000002.tar.tmp").write_bytes(b"left by a killed process")
    write(tmp_path)
    assert content(tmp_path) == before
    assert (tmp_path / "shard-000000.tar").stat().st_mtime_ns == kept


def test_shards_of_other_records_are_not_taken_for_finished(tmp_path):
    write(tmp_path / "a")
    changed = [replace(r, captions=("other",)) for r in records(25)]
    write_split(changed, tmp_path / "a", seed=7, records_per_shard=10, workers=0)
    reader = ShardReader(load_manifest(tmp_path / "a"), max_pixels=10**6)
    assert reader.read(2, 0).data["captions"] == ["other"]


def test_webdataset_reads_the_shards(tmp_path):
    manifest, _ = write(tmp_path)
    urls = [str(manifest.path(i)) for i in range(len(manifest.shards))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("pil"))
    reader = ShardReader(manifest, max_pixels=10**6)
    ours = [reader.read(s, r) for s, n in enumerate(manifest.sizes) for r in range(n)]
    assert [sample["__key__"] for sample in found] == [raw.key for raw in ours]
    assert [sample["json"]["captions"] for sample in found] == [r.data["captions"] for r in ours]
    assert found[0]["jpg"].size == (24, 16)


def test_the_index_measures_texts(tmp_path):
    manifest, _ = write(tmp_path)
    index = load_index(manifest, 0)
    assert len(index) == manifest.shards[0].records
    number = int(index.key(0).removeprefix("rec"))
    assert index.text_bytes[0] == len(f"number {number}".encode()) + len("grün".encode())
    assert index.captions[0] == 2


def test_the_manifest_is_checked(tmp_path):
    manifest, _ = write(tmp_path)
    shard, listing = manifest.path(1), tmp_path / "manifest.json"
    text = listing.read_text()
    with pytest.raises(DataError, match=r"stages/prepare\.py"):
        load_manifest(tmp_path / "nowhere")
    shard.write_bytes(shard.read_bytes() + b"x")
    with pytest.raises(DataError, match="bytes, but the manifest says"):
        load_manifest(tmp_path)
    shard.unlink()
    with pytest.raises(DataError, match="is not there"):
        load_manifest(tmp_path)
    for bad in (text.replace('"version": 2', '"version": 9'), "[1]", "{", '{"version": 1}'):
        listing.write_text(bad)
        with pytest.raises(DataError, match="prepare the shards again") as caught:
            load_manifest(tmp_path)
        assert "\n" not in str(caught.value)
    for name in ("../x.tar", "pipe:cat x.tar", "/etc/x.tar", "x.txt"):
        listing.write_text(text.replace("shard-000000.tar", name))
        with pytest.raises(DataError, match=r"shard name|is not there"):
            load_manifest(tmp_path)


def test_a_damaged_index_is_an_error(tmp_path):
    manifest, _ = write(tmp_path)
    (tmp_path / "shard-000000.index.npz").write_bytes(b"PK nonsense")
    with pytest.raises(DataError, match="index"):
        load_index(manifest, 0)


def test_keys_must_be_unique_and_plain(tmp_path):
    one = records(1)[0]
    for keys in (["same", "same"], ["with.dot"], ["a/b"], [""], ["x" * 91]):
        with pytest.raises(DataError, match="key"):
            write_split(
                [replace(one, key=key) for key in keys],
                tmp_path,
                seed=0,
                records_per_shard=1,
                workers=0,
            )


def test_what_is_no_tar_is_refused(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"x" * 2000)
    with pytest.raises(DataError, match="uncompressed tar"):
        build_index(tmp_path / "x.tar")


def test_a_full_disk_is_one_line(tmp_path):
    (tmp_path / "shard-000000.tar").mkdir()
    with pytest.raises(DataError, match="cannot be written") as caught:
        write(tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob(".*.tmp"))
