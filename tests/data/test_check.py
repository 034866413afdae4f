"""`stages/prepare.py check`: what it finds, what it says, how it ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.check import check_folder, check_split
from pipeline.data.manifest import Manifest
from pipeline.data.shards import write_split
from pipeline.errors import DataError
from tests.data.samples import jpeg, make_tar, records
from tests.data.test_bad_input import index
from tests.helpers import REPOSITORY

LIMIT = 10**6


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Three shards of five records."""
    folder = tmp_path / "data" / "train"
    return write_split(records(15), folder, seed=1, records_per_shard=5, workers=0)[0]


def check(manifest: Manifest) -> list[tuple[str, str, str]]:
    report = check_split(manifest.folder, workers=0, max_pixels=LIMIT)
    return [(fault.reason, fault.shard, fault.key) for fault in report.faults]


def overwrite(manifest: Manifest, shard: int, member: str, record: int, content: bytes) -> str:
    """Put `content` over the start of a member, the size stays; return the record's key."""
    with np.load(manifest.index_path(shard)) as arrays:
        offset, key = int(arrays[f"{member}_offset"][record]), arrays["names"][record].decode()
    with manifest.path(shard).open("r+b") as file:
        file.seek(offset)
        file.write(content)
    return key


def test_all_well(manifest: Manifest) -> None:
    assert check(manifest) == []


def test_every_fault_is_found_and_none_hides_another(manifest: Manifest) -> None:
    spoilt = overwrite(manifest, 0, "image", 1, b"nonsense")
    broken = overwrite(manifest, 0, "json", 3, b"{ nonsense")
    manifest.path(1).unlink()
    manifest.index_path(2).write_bytes(b"nonsense")
    assert check(manifest) == [
        ("shard has another hash", "shard-000000.tar", ""),
        ("index does not fit the shard", "shard-000000.tar", ""),  # in the length of a text
        ("undecodable image", "shard-000000.tar", spoilt),
        ("bad JSON", "shard-000000.tar", broken),
        ("shard missing or changed", "shard-000001.tar", ""),
        ("index missing or of another shard", "shard-000002.tar", ""),
    ]


def test_a_shard_of_another_size_or_cut_short(manifest: Manifest) -> None:
    with manifest.path(0).open("ab") as file:
        file.write(b"\0" * 512)
    os.truncate(manifest.path(1), 3000)
    reasons = [(reason, shard) for reason, shard, _ in check(manifest)]
    assert ("shard missing or changed", "shard-000000.tar") in reasons
    assert ("shard missing or changed", "shard-000001.tar") in reasons
    assert ("unreadable shard", "shard-000001.tar") in reasons
    assert not any(shard == "shard-000002.tar" for _, shard in reasons)


def test_an_index_of_other_members_is_found(manifest: Manifest) -> None:
    """Same size, same count: only a look into the tar tells."""
    with np.load(manifest.index_path(0)) as arrays:
        content = dict(arrays)
    content["image_offset"] = content["image_offset"] + 512
    np.savez(manifest.index_path(0), **content)
    assert check(manifest) == [("index does not fit the shard", "shard-000000.tar", "")]


def test_shards_of_others(tmp_path: Path) -> None:
    manifest, _ = index(tmp_path, [("bad.jpg", jpeg()[:200]), ("bad.txt", b"text")])
    assert check(manifest) == [("truncated image", "0.tar", "bad")]
    make_tar(tmp_path / "tars/1.tar", [("good.jpg", jpeg()), ("good.txt", b"again")])
    manifest, _ = index(tmp_path, [])
    assert check(manifest) == [
        ("key in several shards", "0.tar", "good"),
        ("key in several shards", "1.tar", "good"),
    ]
    os.utime(manifest.path(0), (1, 1))
    assert ("shard missing or changed", "0.tar", "") in check(manifest)


def test_workers_change_nothing_and_the_report_names_examples(
    manifest: Manifest, tmp_path: Path
) -> None:
    keys = [overwrite(manifest, shard, "image", 0, b"nonsense") for shard in (0, 2)]
    lines: list[str] = []
    assert not check_folder(tmp_path / "data", workers=2, max_pixels=LIMIT, report=lines.append)
    assert "15 records in 3 shards: 4 faults" in lines[0]
    assert "  2 undecodable image" in lines
    assert any(f"shard-000002.tar/{keys[1]}: undecodable image" in line for line in lines)
    written = json.loads((manifest.folder / "check.json").read_text())
    assert written["faults"] == {"shard has another hash": 2, "undecodable image": 2}
    assert [e["key"] for e in written["examples"]["undecodable image"]] == keys
    before = (manifest.folder / "check.json").read_bytes()
    check_folder(manifest.folder, workers=0, max_pixels=LIMIT, report=lines.append)
    assert (manifest.folder / "check.json").read_bytes() == before


def test_a_folder_without_shards_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither a manifest.json nor splits"):
        check_folder(tmp_path, workers=0, max_pixels=LIMIT, report=print)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "stages/prepare.py", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_command_ends_with_0_1_or_2(manifest: Manifest, tmp_path: Path) -> None:
    plan = run("check", f"out={tmp_path / 'data'}", "--plan")
    assert plan.returncode == 0 and "reads 15 records in 3 shards" in plan.stdout
    assert not (manifest.folder / "check.json").exists()
    good = run("check", f"out={tmp_path / 'data'}", "workers=1")
    assert good.returncode == 0 and "all well" in good.stdout
    overwrite(manifest, 0, "image", 0, b"nonsense")
    bad = run("check", "recipe=quickstart", f"data.shards={tmp_path / 'data'}", "data.workers=0")
    assert bad.returncode == 1 and "1 undecodable image" in bad.stdout
    wrong = run("check", "out=/nowhere")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: /nowhere: neither")
