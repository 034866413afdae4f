"""MME's folders as records: both official layouts, tables of a part, and what is reported."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import PrepareConfig
from pipeline.data.manifest import load_manifest
from pipeline.data.prepare import prepare
from pipeline.data.reader import RawRecord, ShardReader
from pipeline.data.sources import SourceRecord, load_source
from pipeline.errors import ConfigError, DataError
from tests.data.samples import jpeg
from tests.helpers import require_shared

ASKED = {
    "existence": {"000000006040": ("Is there a train?", "Is there a bed?")},
    "OCR": {"0001": ('Is the word "angie\'s"?', 'Is the word "angle\'s"?'), "0002": ("a?", "b?")},
}


def config(folder: Path, **changes: Any) -> PrepareConfig:
    values = {"source": "mme", "images": str(folder / "mme"), "out": str(folder / "out")}
    return replace(PrepareConfig(**values, workers=0), **changes)


def put(folder: Path, layout: str) -> Path:
    """Writes ASKED in one of the layouts; returns the benchmark's folder."""
    root = folder / "mme"
    for subtask, images in ASKED.items():
        for name, questions in images.items():
            lines = [f"{q}\t{a}\n" for q, a in zip(questions, ("Yes", "No"), strict=True)]
            if layout == "table":
                image, text = root / "images", root / f"{subtask}.txt"
                lines = [f"{name}.jpg\t{line}" for line in lines]
            elif layout == "folders":
                image = root / subtask / "images"
                text = root / subtask / "questions_answers_YN" / f"{name}.txt"
            else:
                image, text = root / subtask, root / subtask / f"{name}.txt"
            for place in (image, text.parent):
                place.mkdir(parents=True, exist_ok=True)
            (image / f"{name}.jpg").write_bytes(jpeg())
            with text.open("a", encoding="utf-8") as file:
                file.write("".join(lines))
    return root


def loaded(cfg: PrepareConfig) -> dict[str, SourceRecord]:
    return {each.key: each for each in load_source(cfg)["test"]}


def raws(folder: Path) -> list[RawRecord]:
    manifest = load_manifest(folder)
    reader = ShardReader(manifest, max_pixels=10**8)
    return [reader.read(s, r) for s, size in enumerate(manifest.sizes) for r in range(size)]


@pytest.mark.parametrize("layout", ["folders", "flat", "table"])
def test_every_layout_gives_the_same_records(tmp_path: Path, layout: str) -> None:
    put(tmp_path, layout)
    lines: list[str] = []
    prepare(config(tmp_path), report=lines.append)
    assert lines[0].startswith("test: 3 records") and lines[0].endswith("skipped: none")
    found = {raw.key: raw for raw in raws(tmp_path / "out" / "test")}
    assert set(found) == {"OCR-0001", "OCR-0002", "existence-000000006040"}
    raw = found["existence-000000006040"]
    assert raw.image == jpeg() and raw.data["image_id"] == "000000006040.jpg"
    assert raw.data["subtask"] == "existence"
    assert raw.data["questions"] == [
        {"question": "Is there a train?", "answer": "Yes"},
        {"question": "Is there a bed?", "answer": "No"},
    ]


def test_a_missing_image_is_reported_and_the_rest_is_there(tmp_path: Path) -> None:
    (put(tmp_path, "folders") / "OCR" / "images" / "0002.jpg").unlink()
    lines: list[str] = []
    manifest = prepare(config(tmp_path), report=lines.append)["test"]
    assert manifest.records == 2 and manifest.skipped == {"missing image": 1}
    assert "1 missing image (OCR-0002)" in lines[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("One?\tYes\n", "odd number of questions"),
        ("One?\tYes\nTwo?\tNo\nThree?\tYes\n", "odd number of questions"),
        ("One?\tYes\nTwo?\tMaybe\n", "unreadable question"),
        ("One? Yes\nTwo?\tNo\n", "unreadable question"),
        ("\tYes\nTwo?\tNo\n", "unreadable question"),
        ("\n", "no questions"),
    ],
)
def test_an_image_that_lacks_a_question_is_skipped_whole(
    tmp_path: Path, text: str, reason: str
) -> None:
    """A half of a pair would count in accuracy and not in accuracy+."""
    (put(tmp_path, "flat") / "OCR" / "0001.txt").write_text(text)
    manifest = prepare(config(tmp_path), report=lambda line: None)["test"]
    assert manifest.records == 2 and manifest.skipped == {reason: 1}


def test_an_image_without_questions_is_reported(tmp_path: Path) -> None:
    (put(tmp_path, "folders") / "OCR" / "questions_answers_YN" / "0001.txt").unlink()
    fault = loaded(config(tmp_path))["OCR-0001"].fault
    assert fault is not None and fault.reason == "no questions" and fault.key == "OCR-0001"


@pytest.mark.parametrize("layout", ["folders", "flat", "table"])
def test_what_macos_leaves_beside_the_files_is_none_of_them(tmp_path: Path, layout: str) -> None:
    root = put(tmp_path, layout)
    expected = loaded(config(tmp_path))
    for file in [each for each in root.rglob("*") if each.is_file()]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7\0\2\xff\xfe")
    assert loaded(config(tmp_path)) == expected


def test_a_second_image_of_one_name_is_reported(tmp_path: Path) -> None:
    folder = put(tmp_path, "folders") / "OCR" / "images"
    (folder / "0001.jpg").rename(folder / "0001.png")
    (folder / "0001.JPG").write_bytes(jpeg())
    found = loaded(config(tmp_path))
    assert found.pop("OCR-0001").image_id == "0001.png"
    (other,) = (each for each in found.values() if each.fault is not None)
    assert other.image_id == "0001.JPG" and other.key.startswith("OCR-0001_JPG-")
    assert str(other.fault) == f"{other.key}: no questions (0001.JPG)" and len(found) == 3


def test_a_table_may_name_two_images_that_differ_in_their_extension(tmp_path: Path) -> None:
    root = put(tmp_path, "table")
    (root / "images" / "0001.png").write_bytes(jpeg())
    with (root / "OCR.txt").open("a") as table:
        table.write("0001.png\tone?\tYes\n0001.png\ttwo?\tNo\n")
    manifest = prepare(config(tmp_path), report=lambda line: None)["test"]
    assert manifest.records == 4 and manifest.skipped == {}
    keys = sorted(raw.key.rpartition("-")[0] for raw in raws(tmp_path / "out" / "test"))
    assert keys == ["OCR", "OCR-0001_jpg", "OCR-0001_png", "existence"]


def test_line_ends_blank_lines_and_case_do_not_matter(tmp_path: Path) -> None:
    file = put(tmp_path, "flat") / "OCR" / "0001.txt"
    file.write_bytes(b"\xef\xbb\xbfOne?\tyes\r\n\r\nTwo? \tNO\r\n")
    record = loaded(config(tmp_path))["OCR-0001"]
    assert record.fault is None
    assert [each["answer"] for each in record.extra["questions"]] == ["Yes", "No"]
    assert record.captions == ("One?", "Two?")


def test_changed_questions_are_not_mixed_with_old_shards(tmp_path: Path) -> None:
    root = put(tmp_path, "folders")
    prepare(config(tmp_path), report=lambda line: None)
    (root / "OCR" / "questions_answers_YN" / "0001.txt").write_text("One?\tYes\nTwo?\tNo\n")
    with pytest.raises(DataError, match="was prepared with other settings"):
        prepare(config(tmp_path), report=lambda line: None)


def test_what_is_no_benchmark_is_named(tmp_path: Path) -> None:
    (tmp_path / "mme").mkdir()
    with pytest.raises(ConfigError, match="holds no questions of MME"):
        load_source(config(tmp_path))
    shutil.rmtree(tmp_path / "mme")
    with pytest.raises(ConfigError, match=r"images=.*no such folder"):
        load_source(config(tmp_path))
    shutil.rmtree(put(tmp_path, "table") / "images")
    (tmp_path / "mme" / "images").mkdir()
    with pytest.raises(ConfigError, match="holds none of the images"):
        load_source(config(tmp_path))


def test_a_table_without_names_is_named(tmp_path: Path) -> None:
    (put(tmp_path, "table") / "OCR.txt").write_text("/etc/a.jpg\tIs it?\tYes\n")
    with pytest.raises(DataError, match=r"OCR\.txt: line 1 does not start with an image's name"):
        load_source(config(tmp_path))


@pytest.mark.shared
def test_the_stored_part_has_21_images_and_42_questions(tmp_path: Path) -> None:
    subset = require_shared("data", "mme", "subset")
    manifest = prepare(config(tmp_path, images=str(subset)), report=lambda line: None)["test"]
    assert manifest.records == 21 and manifest.skipped == {}
    counts = Counter[str]()
    for raw in raws(tmp_path / "out" / "test"):
        counts[raw.data["subtask"]] += len(raw.data["questions"])
    assert counts == {"existence": 18, "color": 12, "count": 6, "position": 6}
