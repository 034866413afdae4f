"""Own data without code: a folder of images and a captions file in any of the usual forms."""

import json
import os
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import PrepareConfig
from pipeline.data.prepare import prepare
from pipeline.data.reader import ShardReader
from pipeline.data.sources import load_source
from pipeline.errors import ConfigError, DataError
from tests.data.samples import jpeg

ROWS = [
    ("cats/a.jpg", "A cat, sitting"),
    ("dogs/a.jpg", "a dog"),
    ("cats/a.jpg", 'ein "Kätzchen"'),
    ("grün 日本.jpg", "緑の絵"),
]


def csv_text(rows=ROWS, header="image,caption") -> str:
    lines = [f'{name},"{caption.replace(chr(34), chr(34) * 2)}"' for name, caption in rows]
    return "\n".join([header, *lines]) + "\n"


FORMS = {
    "captions.csv": csv_text(),
    "excel.csv": "\ufeff" + csv_text(header=" File_Name ,Text").replace("\n", "\r\n"),
    "semicolons.csv": "\n".join(
        ["image;caption", *(";".join((n, '"{}"'.format(c.replace('"', '""')))) for n, c in ROWS)]
    ),
    "captions.tsv": "\n".join(["path\tcaption", *("\t".join(row) for row in ROWS)]),
    "captions.txt": "\n".join(["filename\tsentence", *("\t".join(row) for row in ROWS)]),
    "captions.jsonl": "\n\n".join(json.dumps({"image": n, "caption": c}) for n, c in ROWS),
    "list.json": json.dumps([{"file_name": n, "text": c} for n, c in ROWS]),
    "lines.json": "\n".join(
        json.dumps({"file_name": n, "captions": [c]}, ensure_ascii=False) for n, c in ROWS
    ),
}


@pytest.fixture
def cfg(tmp_path: Path) -> PrepareConfig:
    images = tmp_path / "my images"
    for name, _ in ROWS:
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(jpeg())
    return PrepareConfig(
        source="folder",
        images=str(images),
        captions=str(tmp_path / "my captions.csv"),
        out=str(tmp_path / "my shards"),
        workers=0,
    )


def with_captions(cfg: PrepareConfig, content: str | bytes, name: str = "c.csv") -> PrepareConfig:
    path = Path(cfg.captions).with_name(name)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return replace(cfg, captions=str(path))


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_records(cfg: PrepareConfig, name: str) -> None:
    splits = load_source(with_captions(cfg, FORMS[name], name))
    assert list(splits) == ["train"]
    assert [(r.image_id, r.captions) for r in splits["train"]] == [
        ("cats/a.jpg", ("A cat, sitting", 'ein "Kätzchen"')),
        ("dogs/a.jpg", ("a dog",)),
        ("grün 日本.jpg", ("緑の絵",)),
    ]
    assert [r.key for r in splits["train"][:2]] == ["cats_a", "dogs_a"]


def test_the_shards_hold_names_and_captions_as_they_were(cfg: PrepareConfig) -> None:
    manifest = prepare(with_captions(cfg, csv_text()), report=lambda _: None)["train"]
    assert manifest.skipped == {} and "my shards" in str(manifest.path(0))
    reader = ShardReader(manifest, max_pixels=1000)
    found = {}
    for record in range(3):
        raw = reader.read(0, record)
        found[raw.data["image_id"]] = raw.data["captions"]
        assert reader.image(raw).size == (24, 16)
    assert found["grün 日本.jpg"] == ["緑の絵"]
    assert found["cats/a.jpg"] == ["A cat, sitting", 'ein "Kätzchen"']


def test_keys_stay_apart_where_names_are_alike(cfg: PrepareConfig) -> None:
    names = ["a.b.jpg", "a/b.jpg", "a_b.jpg", "a_b.png", "日本.jpg", "中国.jpg", "x" * 120 + ".jpg"]
    for name in names:
        (Path(cfg.images) / name).parent.mkdir(exist_ok=True)
        (Path(cfg.images) / name).write_bytes(jpeg())
    made = with_captions(cfg, csv_text([(name, f"caption of {name}") for name in names]))
    records = load_source(made)["train"]
    assert len({r.key for r in records}) == len(records)
    manifest = prepare(made, report=lambda _: None)["train"]
    assert manifest.records == len(names)
    assert manifest.skipped == {"no row names it": 3}


def test_what_the_first_json_line_lacks_is_found_in_the_others(cfg: PrepareConfig) -> None:
    rows = [
        {"image": "cats/a.jpg"},
        {"image": "dogs/a.jpg", "caption": "d"},
        {"image": "grün 日本.jpg", "caption": "g", "split": "test"},
    ]
    splits = load_source(with_captions(cfg, "\n".join(map(json.dumps, rows)), "c.jsonl"))
    usable = {s: [r.image_id for r in rs if r.fault is None] for s, rs in splits.items()}
    assert usable == {"train": ["dogs/a.jpg"], "test": ["grün 日本.jpg"]}
    assert [r.fault.reason for r in splits["train"] if r.fault] == ["no caption"]


def test_a_split_column_decides_and_rows_without_one_belong_to_split(cfg: PrepareConfig) -> None:
    rows = ["image,caption,Split", "cats/a.jpg,c,val", "dogs/a.jpg,d,", "grün 日本.jpg,g, test "]
    splits = load_source(with_captions(replace(cfg, split="rest"), "\n".join(rows)))
    assert {s: [r.image_id for r in rs] for s, rs in splits.items()} == {
        "val": ["cats/a.jpg"],
        "rest": ["dogs/a.jpg"],
        "test": ["grün 日本.jpg"],
    }


def test_columns_can_be_named(cfg: PrepareConfig) -> None:
    text = csv_text([(n, "wrong", c) for n, c in ROWS][:0], header="foto,caption,titel,part")
    text += "cats/a.jpg,wrong,right,dev\n"
    named = replace(cfg, image_column="foto", caption_column="titel", split_column="part")
    splits = load_source(with_captions(named, text))
    assert splits["dev"][0].captions == ("right",)
    with pytest.raises(ConfigError, match=r"image_column='': .*foto, caption, titel, part; set"):
        load_source(with_captions(cfg, text))
    with pytest.raises(ConfigError, match=r"caption_column='no': .*no column 'no'"):
        load_source(with_captions(replace(named, caption_column="no"), text))


@pytest.mark.parametrize(
    "written",
    [
        "./cats/a.jpg",
        "cats//a.jpg",
        "cats\\a.jpg",
        "cats/../cats/a.jpg",
        "cats/a",
        "{images}/cats/a.jpg",
    ],
)
def test_names_are_found_as_people_write_them(cfg: PrepareConfig, written: str) -> None:
    written = written.format(images=cfg.images)
    records = load_source(with_captions(cfg, f"image,caption\n{written},c\n"))["train"]
    assert records[0].image_id == "cats/a.jpg" and records[0].fault is None


def test_a_name_may_be_composed_otherwise_than_the_file(cfg: PrepareConfig) -> None:
    decomposed = unicodedata.normalize("NFD", "grün 日本.jpg")
    records = load_source(with_captions(cfg, f"image,caption\n{decomposed},c\n"))["train"]
    assert records[0].image()[1] == "jpg"


def test_linked_folders_and_numbers_as_names_are_followed(cfg: PrepareConfig) -> None:
    images = Path(cfg.images)
    (images / "cats" / "42.jpg").write_bytes(jpeg())
    (images / "42.jpg").write_bytes(jpeg())
    (images / "linked").symlink_to(images / "cats")
    lines = [
        json.dumps({"image_id": 42, "caption": "c"}),
        json.dumps({"image_id": "linked/42.jpg", "caption": "d"}),
    ]
    records = load_source(with_captions(cfg, "\n".join(lines), "c.jsonl"))["train"]
    assert [r.image()[1] for r in records[:2]] == ["jpg", "jpg"]


def test_every_broken_row_is_counted_and_listed(cfg: PrepareConfig) -> None:
    lines = [
        json.dumps({"image": "cats/a.jpg", "caption": "good"}).encode(),
        b'{"image": "dogs/a.jpg", "caption": "cut',
        b'{"image": "dogs/a.jpg", "caption": "caf\xe9"}',
        b'{"image": "dogs/a.jpg", "caption": "\\ud800"}',
        b"[1]",
        json.dumps({"image": "dogs/a.jpg", "caption": " "}).encode(),
        json.dumps({"caption": "whose?"}).encode(),
        json.dumps({"image": "../secret.jpg", "caption": "c"}).encode(),
        json.dumps({"image": "/etc/passwd", "caption": "c"}).encode(),
        json.dumps({"image": "gone.jpg", "caption": "c"}).encode(),
    ]
    lines_of_report: list[str] = []
    made = with_captions(cfg, b"\n".join(lines), "c.jsonl")
    manifest = prepare(made, report=lines_of_report.append)["train"]
    assert manifest.records == 1
    assert manifest.skipped == {
        "bad JSON": 2,
        "invalid UTF-8": 2,
        "no caption": 1,
        "no image name": 1,
        "path outside the image folder": 2,
        "missing image": 1,
        "no row names it": 1,  # the Unicode one; dogs/a.jpg is named, if badly
    }
    assert "2 bad JSON (row:" in lines_of_report[0] and "skipped.jsonl" in lines_of_report[0]
    listed = (manifest.folder / "skipped.jsonl").read_text().splitlines()
    found = {(row["reason"], row["key"]) for row in map(json.loads, listed)}
    assert len(listed) == 10
    assert {("no caption", "row:6"), ("missing image", "gone"), ("bad JSON", "row:5")} <= found


def test_a_comma_without_quotes_is_not_taken_for_the_end_of_the_caption(cfg: PrepareConfig) -> None:
    made = with_captions(cfg, "image,caption\ncats/a.jpg,A cat, sitting\ndogs/a.jpg,a dog\n")
    manifest = prepare(made, report=lambda _: None)["train"]
    assert manifest.records == 1 and manifest.skipped["too many columns"] == 1


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ('image,caption\ncats/a.jpg,"never closed\ndogs/a.jpg,d\n', "c.csv", "line 3.*quotation"),
        (csv_text().encode("utf-16"), "c.csv", "UTF-16; save it as UTF-8"),
        ("image,caption\n", "c.csv", "no usable row .it has no rows"),
        ("", "c.jsonl", "no usable row"),
        ("{", "c.jsonl", r"no usable row \(row:1: bad JSON"),
        ('{"annotations": [], "images": []}', "c.json", "use source=coco"),
        (
            FORMS["list.json"][:-1],
            "c.json",
            r"not readable as JSON \(.*line 1 column .*get it again",
        ),
    ],
)
def test_a_file_of_no_use_is_one_line(cfg: PrepareConfig, content, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_source(with_captions(cfg, content, name))
    assert "\n" not in str(caught.value)


def test_an_image_folder_that_is_the_wrong_one_is_said(cfg: PrepareConfig) -> None:
    made = with_captions(cfg, "image,caption\nother/a.jpg,c\n")
    with pytest.raises(ConfigError, match=r"holds none of the images.*other/a.jpg"):
        prepare(made, report=lambda _: None)
    assert not Path(cfg.out).exists()


def test_a_pipe_among_the_images_is_skipped_and_not_waited_for(cfg: PrepareConfig) -> None:
    os.mkfifo(Path(cfg.images) / "pipe.jpg")
    made = with_captions(cfg, csv_text([("pipe.jpg", "p"), *ROWS]))
    manifest = prepare(made, report=lambda _: None)["train"]
    assert (manifest.records, manifest.skipped) == (3, {"not an image": 1})
