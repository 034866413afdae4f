"""What the web and people's disks hold: every kind of bad input is used, counted or refused aloud.

All goes the public way: a tar of somebody else's with one good record and one of the kind in
question is indexed by `prepare`, then read by the loader, in order.
"""

import io
import json
import os
import pickle
import re
import shutil
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import PrepareConfig
from pipeline.data.collate import LanguageCollator
from pipeline.data.loader import DecodedImages, Share, StepDataset, read_all
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.data.plan import Plan
from pipeline.data.prepare import prepare
from pipeline.data.prompts import IGNORE, CaptionRows, Row
from pipeline.data.reader import ShardReader
from pipeline.errors import DataError, UserError
from pipeline.models.scratch import train_tokenizer
from tests.data.samples import DUMMY, EachCaption, encode, jpeg, make_tar

LIMIT = 1_000_000  # pixels
NOBODY = 65534
GOOD = [("good.jpg", jpeg()), ("good.txt", b"a good one")]
RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8))


def index(folder: Path, members, name: str = "0.tar") -> tuple[Manifest, list[str]]:
    """Index a tar of the good record and `members`; return the manifest and what was printed."""
    make_tar(folder / "tars" / name, [*GOOD, *members])
    return prepare_again(folder)


def prepare_again(folder: Path) -> tuple[Manifest, list[str]]:
    cfg = PrepareConfig(
        source="webdataset", shards=str(folder / "tars"), out=str(folder / "out"), workers=0
    )
    lines: list[str] = []
    return prepare(cfg, report=lines.append)["train"], lines


def letters(text: str) -> Row:
    ids = [ord(letter) for letter in text]
    return Row([-1, *ids], [IGNORE, *ids])


def to_tensor(image: Image.Image) -> torch.Tensor:
    assert image.mode == "RGB"
    return torch.zeros(3, 4, 4)


_LETTERS = EachCaption(letters)


def load(manifest: Manifest, *, rows=_LETTERS, strict: bool = False):
    """Read everything once; return the keys that were used, the steps, and the batches."""
    dataset = StepDataset(
        reader=ShardReader(manifest, max_pixels=LIMIT, retry_wait=0.0),
        plan=Plan(manifest.sizes, seed=0, global_batch=2, sequential=True),
        share=Share(0, 1, 1, 2),
        collate=LanguageCollator((3, 4, 4), pad_id=0, dummy=DUMMY),
        rows=rows,
        images=DecodedImages(to_tensor, 4),
        strict=strict,
    )
    steps = list(read_all(dataset, workers=0))
    return [key for step in steps for batch in step.batches for key in batch.keys], steps


def faults_of(steps) -> Counter:
    return sum((step.faults for step in steps), Counter())


def listed(manifest: Manifest) -> set[tuple[str, str]]:
    lines = (manifest.folder / "skipped.jsonl").read_text().splitlines()
    return {(row["reason"], row["key"]) for row in map(json.loads, lines)}


def palette(**options) -> bytes:
    return encode(NOISE.convert("P", palette=Image.Palette.ADAPTIVE), "PNG", **options)


def animation() -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


ODD_BUT_FINE = {
    "CMYK": jpeg((0, 255, 255, 0), mode="CMYK"),
    "16 bits": encode(Image.fromarray(RNG.integers(0, 65535, (8, 8), dtype=np.uint16)), "PNG"),
    "palette": palette(),
    "palette with transparency": palette(transparency=3),
    "animated GIF": animation(),
    "one pixel": jpeg(size=(1, 1)),
    "one row": encode(Image.new("RGB", (90, 1)), "PNG"),
    "WebP": encode(NOISE, "WEBP"),
    "TIFF": encode(NOISE, "TIFF"),
    "BMP": encode(NOISE, "BMP"),
    "progressive": encode(NOISE, "JPEG", progressive=True),
}


@pytest.mark.parametrize("kind", ODD_BUT_FINE)
def test_odd_images_are_used(tmp_path: Path, kind: str) -> None:
    manifest, _ = index(tmp_path, [("odd.png", ODD_BUT_FINE[kind]), ("odd.txt", b"odd")])
    keys, steps = load(manifest, strict=True)
    assert keys == ["good", "odd"] and not faults_of(steps)


def bomb() -> bytes:
    """A PNG of a few hundred bytes whose header announces 50,000 x 50,000 pixels."""
    small = encode(Image.new("1", (8, 8)), "PNG")
    return small[:16] + (50_000).to_bytes(4, "big") * 2 + small[24:]


BAD_IMAGES = {
    "truncated JPEG": (encode(NOISE, "JPEG")[:2000], "truncated image"),
    "truncated PNG": (encode(NOISE, "PNG")[:2000], "truncated image"),
    "text named .jpg": (b"<html>404 not found</html>", "undecodable image"),
    "zero bytes": (b"", "undecodable image"),
    "decompression bomb": (encode(Image.new("1", (4000, 4000)), "PNG"), "too many pixels"),
    "bomb with a broken header": (bomb(), None),
    "one endless row": (encode(Image.new("1", (60_000, 1)), "PNG"), "too thin"),
    "one endless column": (encode(Image.new("1", (1, 60_000)), "PNG"), "too thin"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "undecodable image"),
    "pickle named .jpg": (pickle.dumps([1, 2]), "undecodable image"),
}
BAD_TEXTS = {
    "empty caption": ("json", b'{"caption": ""}', "no captions"),
    "blank text": ("txt", b" \n", "no captions"),
    "no caption": ("json", b'{"url": "x"}', "no captions"),
    "caption of another type": ("json", b'{"caption": 7}', "no captions"),
    "invalid JSON": ("json", b'{"caption": "cut', "bad JSON"),
    "JSON, not an object": ("json", b'["a caption"]', "bad JSON"),
    "JSON that nests too deep": ("json", b"[" * 100_000, "bad JSON"),
    "invalid UTF-8 in JSON": ("json", b'{"caption": "caf\xe9"}', "invalid UTF-8"),
    "invalid UTF-8 in text": ("txt", b"caf\xe9", "invalid UTF-8"),
    "half a surrogate pair": ("json", b'{"caption": "\\ud83d"}', "invalid UTF-8"),
}
BAD_RECORDS = {
    **{
        kind: ([("bad.jpg", data), ("bad.txt", b"c")], why)
        for kind, (data, why) in BAD_IMAGES.items()
    },
    **{
        kind: ([("bad.jpg", jpeg()), (f"bad.{ending}", data)], why)
        for kind, (ending, data, why) in BAD_TEXTS.items()
    },
}


@pytest.mark.parametrize("kind", BAD_RECORDS)
def test_bad_content_is_skipped_counted_and_named(tmp_path: Path, kind: str) -> None:
    members, reason = BAD_RECORDS[kind]
    manifest, _ = index(tmp_path, members)
    assert manifest.records == 2  # only reading shows it
    keys, steps = load(manifest)
    assert keys == ["good"]
    faults = faults_of(steps)
    assert sum(faults.values()) == 1
    assert reason is None or faults == {reason: 1}
    (example,) = [line for step in steps for line in step.examples]
    assert example.startswith("0.tar/bad: ") and next(iter(faults)) in example
    with pytest.raises(DataError, match=r"0.tar/bad: .*data.strict=true stops at the first"):
        load(manifest, strict=True)


def header(name: str, kind: bytes, target: str = "good.jpg") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


SPARSE = tarfile.TarInfo("bad.jpg")
SPARSE.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
MEMBERS_LEFT_OUT = {
    "record without its image": ([("bad.json", b'{"caption": "c"}')], {("no image member", "bad")}),
    "image without its record": ([("bad.jpg", jpeg())], {("no json or txt member", "bad")}),
    "duplicate key": (
        [("good.jpg", jpeg((0, 0, 0))), ("good.txt", b"another")],
        {("duplicate member", "good.jpg"), ("duplicate member", "good.txt")},
    ),
    "symbolic link": (
        [(header("bad.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""), ("bad.txt", b"c")],
        {("link or sparse member", "bad.jpg"), ("no image member", "bad")},
    ),
    "hard link": (
        [(header("bad.jpg", tarfile.LNKTYPE), b""), ("bad.txt", b"c")],
        {("link or sparse member", "bad.jpg"), ("no image member", "bad")},
    ),
    "sparse member": (
        [(SPARSE, b"1\n0\n512\n".ljust(512, b"\0") + jpeg()), ("bad.txt", b"c")],
        {("link or sparse member", "bad.jpg"), ("no image member", "bad")},
    ),
    "name with ..": (
        [("../../bad.jpg", jpeg()), ("../../bad.txt", b"c")],
        {("unsafe member name", "../../bad.jpg"), ("unsafe member name", "../../bad.txt")},
    ),
    "absolute name": (
        [("/etc/bad.jpg", jpeg()), ("/etc/bad.txt", b"c")],
        {("unsafe member name", "/etc/bad.jpg"), ("unsafe member name", "/etc/bad.txt")},
    ),
    "pickles only": (
        [("bad.jpg", jpeg()), ("bad.pyd", b"\x80"), ("bad.pkl", b"\x80"), ("bad.pth", b"\x80")],
        {("no json or txt member", "bad")},
    ),
}


@pytest.mark.parametrize("kind", MEMBERS_LEFT_OUT)
def test_members_of_no_use_are_counted_when_indexing(tmp_path: Path, kind: str) -> None:
    members, expected = MEMBERS_LEFT_OUT[kind]
    manifest, lines = index(tmp_path, members)
    assert listed(manifest) == expected
    assert manifest.skipped == Counter(reason for reason, _ in expected)
    for reason, key in expected:
        assert f"{manifest.skipped[reason]} {reason} (" in lines[0] and key in lines[0]
    keys, steps = load(manifest, strict=True)
    assert keys == ["good"] and steps[0].batches[0].input_ids[0].tolist()[1:] == list(b"a good one")


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_no_pickle_is_ever_opened(tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    endings = ("pyd", "pkl", "pickle", "pth", "npy", "jpg.pyd", "cls", "json.pkl")
    others = [(f"more.{ending}", trap) for ending in endings]
    manifest, _ = index(tmp_path, [*others, ("more.jpg", jpeg()), ("more.txt", b"more")])
    assert load(manifest, strict=True)[0] == ["good", "more"]
    assert not (tmp_path / "sprung").exists()


def test_keys_with_dots_end_at_the_first_one(tmp_path: Path) -> None:
    members = [("v1.2/a.b.jpg", jpeg()), ("v1.2/a.jpg", jpeg()), ("v1.2/a.txt", b"text")]
    manifest, _ = index(tmp_path, [*members, ("v1.2/.hidden.jpg", jpeg())])
    assert load(manifest)[0] == ["good", "v1.2/a"]


@pytest.mark.parametrize("name", ["grün/日本", "naïve café", "x" * 200, "emoji 🙂"])
def test_any_unicode_in_names_and_captions(tmp_path: Path, name: str) -> None:
    caption = f"Übung: {name} 緑"
    manifest, _ = index(
        tmp_path,
        [(f"{name}.jpg", jpeg()), (f"{name}.json", json.dumps({"caption": caption}).encode())],
    )
    keys, steps = load(manifest, strict=True)
    assert sorted(keys) == sorted(["good", name])  # a micro-batch is ordered by length
    row = steps[0].batches[0].input_ids[keys.index(name)].tolist()
    assert "".join(map(chr, row[1 : len(caption) + 1])) == caption


def test_names_that_are_no_utf8_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "tars" / "0.tar"
    make_tar(path, GOOD)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name in ("caf\xe9", "caf\xe8"):
            for ending, content in (("jpg", jpeg()), ("txt", b"text")):
                info = tarfile.TarInfo(f"{name}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    keys, _ = load(prepare_again(tmp_path)[0], strict=True)
    assert keys == ["caf\\xe9", "caf\\xe8"]
    json.dumps(keys).encode()


def test_a_caption_of_ten_thousand_words_is_cut_and_counted(tmp_path: Path) -> None:
    caption = " ".join(f"word{i}" for i in range(10_000))
    manifest, _ = index(tmp_path, [("long.jpg", jpeg()), ("long.txt", caption.encode())])
    tokenizer = train_tokenizer(["a good one", caption[:2000]], 400)
    rows = CaptionRows(tokenizer, lambda prompt, image: [], max_tokens=20)
    started = time.perf_counter()
    keys, steps = load(manifest, rows=rows, strict=True)
    assert time.perf_counter() - started < 2.0
    assert sorted(keys) == ["good", "long"]
    assert sum(batch.cut for step in steps for batch in step.batches) == 1
    assert steps[0].batches[0].input_ids.shape[1] == 20


def test_a_caption_that_writes_the_end_does_not_end_there(tmp_path: Path) -> None:
    text = "a cat <|endoftext|> a dog"
    manifest, _ = index(tmp_path, [("end.jpg", jpeg()), ("end.txt", text.encode())])
    tokenizer = train_tokenizer(["a good one", text], 400)
    rows = CaptionRows(tokenizer, lambda prompt, image: [], max_tokens=60)
    _, steps = load(manifest, rows=rows, strict=True)
    found = [ids for step in steps for batch in step.batches for ids in batch.input_ids.tolist()]
    said = [ids[: ids.index(tokenizer.eos_token_id)] for ids in found]
    assert sorted(map(tokenizer.decode, said)) == ["a cat <|endoftext|> a dog", "a good one"]


def cut_points() -> Iterator[tuple[str, Callable[[bytes, int], int]]]:
    """Where a tar of two records may end too early; `end` is where its members do."""
    yield "in an image", lambda content, end: 700
    yield "in a header", lambda content, end: end - 1200
    yield "between members", lambda content, end: end
    yield "in the end mark", lambda content, end: end + 100


@pytest.mark.parametrize("where", dict(cut_points()))
def test_a_tar_cut_short_is_refused(tmp_path: Path, where: str) -> None:
    path = make_tar(tmp_path / "tars/0.tar", [*GOOD, ("b.jpg", jpeg()), ("b.txt", b"text")])
    make_tar(tmp_path / "tars/1.tar", GOOD)
    with tarfile.open(path) as tar:
        tar.getmembers()
        end = tar.offset
    os.truncate(path, dict(cut_points())[where](path.read_bytes(), end))
    with pytest.raises(DataError, match=r"1 of 2 shards cannot be used.*0.tar: .*(copy|make)") as e:
        prepare_again(tmp_path)
    assert "\n" not in str(e.value)
    path.unlink()
    assert prepare_again(tmp_path)[0].records == 1


def test_two_tars_in_one_file_are_refused(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "tars/0.tar", GOOD)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(DataError, match=r"0.tar: goes on behind its end mark"):
        prepare_again(tmp_path)


def test_a_damaged_header_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "tars/0.tar", [*GOOD, ("b.jpg", jpeg()), ("b.txt", b"text")])
    content = bytearray(path.read_bytes())
    at = content.index(b"b.jpg")
    content[at : at + 4] = b"\xff" * 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"0.tar: cut short or damaged at byte"):
        prepare_again(tmp_path)


def test_an_empty_shard(tmp_path: Path) -> None:
    make_tar(tmp_path / "tars/1.tar", [])
    manifest, _ = index(tmp_path, [])
    assert [shard.records for shard in manifest.shards] == [1, 0]
    assert load(manifest)[0] == ["good"]
    (tmp_path / "tars/1.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"1.tar: not a readable, uncompressed tar .empty file"):
        prepare_again(tmp_path)


def shrink(shard: Path, _: Path) -> None:
    os.truncate(shard, 4096)


def remove(shard: Path, _: Path) -> None:
    shard.unlink()


def touch(shard: Path, _: Path) -> None:
    os.utime(shard, (1, 1))


def other_version(_: Path, folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"version": 2', '"version": 1'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shrink, r"0.tar: 4096 bytes, but the manifest says 10240; copy the shard again"),
        (remove, r"0.tar: the manifest lists this shard, but it is not there .*copy it again"),
        (touch, r"0.tar: was changed .* after it was indexed; run stages/prepare.py again"),
        (other_version, r"manifest.json: version 1, but this code reads version 2; prepare the"),
    ],
)
def test_shards_that_do_not_fit_their_manifest(tmp_path: Path, damage, message: str) -> None:
    manifest, _ = index(tmp_path, [])
    damage(manifest.path(0), manifest.folder)
    with pytest.raises(DataError, match=message) as caught:
        load_manifest(manifest.folder)
    assert "\n" not in str(caught.value)


def test_an_index_of_an_older_shard_is_not_used(tmp_path: Path) -> None:
    old, _ = index(tmp_path, [])
    stale = old.index_path(0).read_bytes()
    new, _ = index(tmp_path, [("b.jpg", jpeg()), ("b.txt", b"text")])
    new.index_path(0).write_bytes(stale)
    with pytest.raises(DataError, match=r"0.index.npz: was made from another state of 0.tar"):
        load(load_manifest(new.folder))


def test_what_the_disk_refuses_is_tried_again_and_then_fatal(tmp_path: Path) -> None:
    manifest, _ = index(tmp_path, [("b.jpg", jpeg()), ("b.txt", b"text")])
    os.truncate(manifest.path(0), 1000)  # after the manifest was checked
    with pytest.raises(
        DataError, match=r"0.tar: record good: .* 5 tries \(1000 bytes, but the manifest says"
    ):
        load(manifest)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter (pytest's own may not be)."""
    folder = Path(tempfile.mkdtemp(prefix="eim test "))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_nobody(action: Callable[[], object]) -> str:
    """What `action` raises in a process without root's rights, or "done"."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            action()
            said = "done"
        except UserError as error:
            said = f"UserError {error}"
        except Exception as error:  # noqa: BLE001 - told to the parent
            said = f"bug: {error!r}"
        os.write(sender, said.encode())
        os._exit(0)
    os.close(sender)
    os.waitpid(child, 0)
    with os.fdopen(receiver, "rb") as pipe:
        return pipe.read().decode()


@pytest.mark.parametrize(
    ("locked", "message"),
    [
        ("out", "out/train/prepare.json: cannot be read .*Permission denied"),
        ("out/train", "out/train/prepare.json: cannot be read .*Permission denied"),
        ("tars", "shards='.*/tars': .*/tars cannot be read .Permission denied.; mend"),
        ("tars/more", "shards='.*/tars': .*/tars/more cannot be read .Permission denied.; mend"),
        ("tars/0.tar", "1 of 2 shards cannot be used.*0.tar: .*Permission denied"),
    ],
)
def test_what_may_not_be_read_or_written_is_one_line(
    open_folder: Path, locked: str, message: str
) -> None:
    make_tar(open_folder / "tars/0.tar", GOOD)
    make_tar(open_folder / "tars/more/1.tar", GOOD)
    (open_folder / "out/train").mkdir(parents=True)
    for folder in (open_folder / "out", open_folder / "out/train"):
        folder.chmod(0o777)
    assert as_nobody(lambda: prepare_again(open_folder)) == "done"
    (open_folder / locked).chmod(0)
    os.utime(open_folder / "tars/0.tar")  # to be indexed again
    said = as_nobody(lambda: prepare_again(open_folder))
    assert re.match(f"UserError .*{message}", said) and "\n" not in said


def test_shards_that_may_not_be_read_are_one_line(open_folder: Path) -> None:
    manifest, _ = index(open_folder, [])
    assert as_nobody(lambda: load(load_manifest(manifest.folder))) == "done"
    manifest.path(0).chmod(0)
    said = as_nobody(lambda: load(load_manifest(manifest.folder)))
    assert said.startswith("UserError") and "0.tar: record good: cannot be read" in said
    assert "Permission denied" in said
    manifest.folder.chmod(0)
    said = as_nobody(lambda: load_manifest(manifest.folder))
    assert said.startswith("UserError") and "Permission denied" in said
