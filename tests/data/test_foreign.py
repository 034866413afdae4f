"""Shards that somebody else made: found, indexed where they lie, kept up to date, read."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline.config import PrepareConfig
from pipeline.data.manifest import load_manifest
from pipeline.data.prepare import prepare
from pipeline.data.reader import ShardReader
from pipeline.errors import ConfigError, DataError
from tests.data.samples import encode, jpeg, make_tar


def members(key: str) -> list[tuple[str, bytes]]:
    """One record as img2dataset writes it."""
    about = {"caption": f"caption of {key}", "url": "http://x", "key": key, "sha256": "0"}
    return [
        (f"{key}.jpg", jpeg()),
        (f"{key}.json", json.dumps(about).encode()),
        (f"{key}.txt", b"a text that the JSON's caption overrules"),
    ]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of two records each, one in a sub-folder, with what img2dataset leaves there."""
    folder = tmp_path / "their shards"
    for number, place in enumerate(("00000", "00001", "more/00002")):
        make_tar(folder / f"{place}.tar", [*members(f"{number}0"), *members(f"{number}1")])
        (folder / f"{place}.parquet").write_bytes(b"PAR1")
        (folder / f"{place}_stats.json").write_text("{}")
    return folder


@pytest.fixture
def cfg(tmp_path: Path, shards: Path) -> PrepareConfig:
    return PrepareConfig(
        source="webdataset", shards=str(shards), out=str(tmp_path / "made here"), workers=0
    )


def run(cfg: PrepareConfig) -> tuple[dict, list[str]]:
    lines: list[str] = []
    return prepare(cfg, report=lines.append), lines


def read_all(folder: Path) -> dict[str, list[str]]:
    manifest = load_manifest(folder)
    reader = ShardReader(manifest, max_pixels=10**6)
    places = [(s, r) for s, n in enumerate(manifest.sizes) for r in range(n)]
    raws = [reader.read(*place) for place in places]
    assert all(reader.image(raw).mode == "RGB" for raw in raws)
    return {raw.key: raw.data["captions"] for raw in raws}


def listing(folder: Path) -> list[tuple[str, bytes]]:
    return [(str(p), p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()]


def test_shards_are_read_where_they_lie_and_nothing_is_written_there(
    cfg: PrepareConfig, shards: Path
) -> None:
    before = listing(shards)
    shards.chmod(0o555)
    _, lines = run(cfg)
    assert listing(shards) == before
    assert "6 records in 3 shards" in lines[0] and "skipped: none" in lines[0]
    content = json.loads((Path(cfg.out) / "train/manifest.json").read_text())
    assert content["shards_at"] == str(shards)
    assert [s["name"] for s in content["shards"]] == ["00000.tar", "00001.tar", "more/00002.tar"]
    assert read_all(Path(cfg.out) / "train")["21"] == ["caption of 21"]


def test_workers_change_nothing(cfg: PrepareConfig, tmp_path: Path) -> None:
    run(cfg)
    run(replace(cfg, workers=2, out=str(tmp_path / "two")))
    first = [(Path(p).name, b) for p, b in listing(Path(cfg.out))]
    assert first == [(Path(p).name, b) for p, b in listing(tmp_path / "two")]


def test_txt_alone_json_alone_or_both(cfg: PrepareConfig, tmp_path: Path) -> None:
    webp = encode(Image.new("RGB", (8, 8)), "WEBP")
    content = [
        *[("both.webp", webp), ("both.txt", b"from txt"), ("both.json", b'{"caption": "json"}')],
        *[("lacks.json", b'{"url": "x"}'), ("lacks.txt", b"from txt"), ("lacks.jpeg", jpeg())],
        *[("blank.PNG", encode(Image.new("L", (8, 8)), "PNG")), ("blank.txt", "grün\n".encode())],
        *[("blank.json", b'{"caption": " "}'), ("blank.cls", b"7")],
        *[("text.jpg", jpeg()), ("text.txt", b"from txt"), ("text.seg.png", b"a mask")],
    ]
    make_tar(tmp_path / "mixed/0.tar", content)
    manifests, _ = run(replace(cfg, shards=str(tmp_path / "mixed"), split="val"))
    assert read_all(Path(cfg.out) / "val") == {
        "both": ["json"],
        "lacks": ["from txt"],
        "blank": ["grün\n"],
        "text": ["from txt"],
    }
    index = ShardReader(manifests["val"], max_pixels=1)._index(0)
    assert index.text_bytes.tolist() == [4, 8, len("grün\n".encode()), 8]


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("0000{0..1}.tar", 2), ("*.tar", 2), ("**/*.tar", 3), ("{00000,more/00002}.tar", 2)],
)
def test_patterns(cfg: PrepareConfig, shards: Path, pattern: str, count: int) -> None:
    manifests, _ = run(replace(cfg, shards=f"{shards}/{pattern}"))
    assert len(manifests["train"].shards) == count
    assert len(read_all(Path(cfg.out) / "train")) == 2 * count


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("", "shards='': is not set; set shards to"),
        ("/nowhere", r"/nowhere is not there"),
        ("{here}/{{00000..00009}}.tar", r"00002.tar is not there; name what is there"),
        ("{here}/more/*.parquet", r"names no \*.tar"),
        ("http://host/*.tar", "a server is not searched"),
        ("s3://bucket/cc3m", "'cc3m' is not the name of a .tar"),
        ("s3://bucket/{{00..02}}.tar.gz", "'00.tar.gz' is not the name of a .tar"),
        ("ftp://host/00000.tar", "ftp: shards are read from paths and from"),
        ("pipe:cat 00000.tar", "pipe: shards are read from paths and from"),
    ],
)
def test_what_is_not_there_is_one_line(
    cfg: PrepareConfig, shards: Path, named: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run(replace(cfg, shards=named.format(here=shards)))
    assert "\n" not in str(caught.value)
    assert not Path(cfg.out).exists()


def test_compressed_shards_are_refused(cfg: PrepareConfig, shards: Path) -> None:
    (shards / "00003.tar.gz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(ConfigError, match=r"00003.tar.gz is compressed.*unpack it"):
        run(cfg)
    (shards / "00003.tar.gz").rename(shards / "00003.tar")
    with pytest.raises(DataError, match=r"1 of 4 shards.*00003.tar: compressed with gzip.*unpack"):
        run(cfg)


def test_only_what_changed_is_indexed_again(cfg: PrepareConfig, shards: Path) -> None:
    folder = Path(cfg.out) / "train"
    run(cfg)
    first = load_manifest(folder)
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob("*.index.npz")}
    make_tar(shards / "00001.tar", members("new"))
    make_tar(shards / "00003.tar", members("added"))
    with pytest.raises(DataError, match=r"00001.tar: was changed"):
        load_manifest(folder)
    run(cfg)
    assert sorted(read_all(folder)) == ["00", "01", "20", "21", "added", "new"]
    kept = {p for p, stamp in stamps.items() if p.stat().st_mtime_ns == stamp}
    assert {p.name for p in kept} == {"00000.index.npz", "00002.index.npz"}
    assert load_manifest(folder).fingerprint != first.fingerprint


def test_a_shard_that_has_gone_is_said_once(cfg: PrepareConfig, shards: Path) -> None:
    run(cfg)
    (shards / "more/00002.tar").unlink()
    manifests, lines = run(cfg)
    assert manifests["train"].records == 4
    assert lines[1] == "train: 1 shards are no longer there: more/00002"
    assert len(run(cfg)[1]) == 1


def test_an_index_older_than_its_shard_is_noticed(cfg: PrepareConfig, shards: Path) -> None:
    folder = Path(cfg.out) / "train"
    run(cfg)
    tar = shards / "00000.tar"
    content = tar.read_bytes()
    tar.write_bytes(content.replace(b"caption of 00", b"caption of XX"))  # of the same size
    with pytest.raises(DataError, match=r"00000.tar: was changed .* after it was indexed; run"):
        load_manifest(folder)
    run(cfg)
    assert read_all(folder)["00"] == ["caption of XX"]


def test_hashes_on_demand(cfg: PrepareConfig, shards: Path) -> None:
    manifests, _ = run(cfg)
    assert [s.sha256 for s in manifests["train"].shards] == [None] * 3
    hashed = run(replace(cfg, hash=True))[0]["train"]
    assert all(len(s.sha256 or "") == 64 for s in hashed.shards)
    assert run(cfg)[0]["train"] == hashed  # once known they are kept


def test_an_unfinished_run_leaves_no_manifest_and_keeps_what_it_did(
    cfg: PrepareConfig, shards: Path
) -> None:
    bad = shards / "00001.tar"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"1 of 3 shards cannot be used, the others are indexed"):
        run(cfg)
    folder = Path(cfg.out) / "train"
    assert not (folder / "manifest.json").exists()
    stamp = (folder / "00000.index.npz").stat().st_mtime_ns
    bad.write_bytes(whole)
    run(cfg)
    assert (folder / "00000.index.npz").stat().st_mtime_ns == stamp
    assert len(read_all(folder)) == 6


def test_a_folder_indexed_from_elsewhere_is_refused(cfg: PrepareConfig, shards: Path) -> None:
    run(cfg)
    with pytest.raises(DataError, match=r"other settings \(shards was .*; set out to"):
        run(replace(cfg, shards=str(shards / "more")))


def test_a_shard_that_is_being_written_is_not_indexed(
    cfg: PrepareConfig, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.data import foreign

    real = foreign.build_index

    def slow(tar: Path):
        found = real(tar)
        os.utime(tar)
        return found

    monkeypatch.setattr(foreign, "build_index", slow)
    with pytest.raises(DataError, match="is being written; run again when it is complete"):
        run(cfg)
