"""Raw data sets as records, and their preparation as shards."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline.config import PrepareConfig
from pipeline.data.prepare import prepare
from pipeline.data.sources import load_source
from pipeline.errors import ConfigError, DataError, UserError
from tests.data.samples import encode, jpeg
from tests.helpers import require_shared


def put_images(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(jpeg())
    return str(folder)


def put_json(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def annotations(*pairs):
    return {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i, _ in pairs],
        "annotations": [{"image_id": i, "caption": c} for i, cs in pairs for c in cs],
    }


@pytest.fixture
def coco(tmp_path):
    first = put_json(tmp_path / "a.json", annotations((1, ["one ", "uno"]), (2, ["two"])))
    second = put_json(tmp_path / "b.json", annotations((2, ["two", "dos"]), (3, [])))
    images = put_images(tmp_path / "images", "000000000001.jpg", "000000000003.jpg")
    return PrepareConfig(
        source="coco",
        images=images,
        annotations=[first, second],
        out=str(tmp_path / "out"),
        workers=0,
    )


@pytest.fixture
def flickr(tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    for name, image in (("train", "a.jpg\ngone.jpg"), ("dev", "b.jpg"), ("test", "c.jpg\n")):
        (lists / f"Flickr_8k.{name}Images.txt").write_text(image)
    captions = tmp_path / "captions.txt"
    rows = ['a.jpg,"A dog , running ."', "a.jpg,A dog", "b.jpg,B", "c.jpg,C", "gone.jpg,G"]
    captions.write_text("\n".join(["image,caption", *rows]))
    return PrepareConfig(
        source="flickr8k",
        images=put_images(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg"),
        captions=str(captions),
        split_lists=str(lists),
        out=str(tmp_path / "out"),
        workers=0,
    )


def test_coco_annotations(coco):
    splits = load_source(replace(coco, split="val"))
    assert list(splits) == ["val"]
    assert [(r.image_id, r.captions) for r in splits["val"]] == [
        (1, ("one", "uno")),
        (2, ("two", "dos")),
        (3, ()),
    ]
    assert splits["val"][0].key == "000000000001"
    assert splits["val"][0].image() == (jpeg(), "jpg")


def test_karpathy_splits(tmp_path):
    def image(split, name, number):
        sentences = [{"raw": f"caption of {name}"}]
        return {
            "filepath": "val2014",
            "filename": f"{name}.jpg",
            "split": split,
            "cocoid": number,
            "sentences": sentences,
        }

    content = {
        "images": [image(s, f"im.{s}", i) for i, s in enumerate(["train", "restval", "val"])]
    }
    cfg = PrepareConfig(
        source="coco",
        images=put_images(tmp_path / "flat", "im.train.jpg"),
        karpathy=put_json(tmp_path / "dataset_coco.json", content),
    )
    splits = load_source(cfg)
    assert {s: [r.key for r in rs] for s, rs in splits.items()} == {
        "train": ["im_train", "im_restval"],
        "val": ["im_val"],
    }
    assert splits["train"][0].image()[1] == "jpg"
    put_images(tmp_path / "nested/val2014", "im.val.jpg")
    nested = load_source(replace(cfg, images=str(tmp_path / "nested")))
    assert nested["val"][0].image()[1] == "jpg"


def test_karpathy_lists_split_annotations_by_image_id(coco, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "karpathy_val_images.txt").write_text("val2014/COCO_val2014_000000000003.jpg 3\n")
    (lists / "karpathy_test_images.txt").write_text("val2014/COCO_val2014_000000000001.jpg 1\n\n")
    cfg = replace(coco, split_lists=str(lists))
    ids = {split: [r.image_id for r in records] for split, records in load_source(cfg).items()}
    assert ids == {"train": [2], "val": [3], "test": [1]}
    (lists / "karpathy_train_images.txt").write_text("train2014/COCO_train2014_000000000009.jpg 9")
    assert load_source(cfg)["train"] == []  # image 2 is on no list
    (lists / "karpathy_test_images.txt").write_text("no number here")
    with pytest.raises(DataError, match="'no number here' names no image id"):
        load_source(cfg)
    (lists / "karpathy_test_images.txt").unlink()
    with pytest.raises(ConfigError, match=r"karpathy_test_images\.txt': no such file"):
        load_source(cfg)


def test_images_of_2014_are_found_in_their_folders(coco, tmp_path):
    name = "COCO_val2014_000000000001.jpg"
    content = {"images": [{"id": 1, "file_name": name}], "annotations": []}
    cfg = replace(coco, annotations=[put_json(tmp_path / "a2014.json", content)])
    for images in (tmp_path / "nested/val2014", tmp_path / "flat"):
        put_images(images, name)
        folder = images.parent if images.name == "val2014" else images
        (record,) = load_source(replace(cfg, images=str(folder)))["train"]
        assert record.image() == (jpeg(), "jpg")


@pytest.mark.shared
def test_the_real_coco_is_split_by_karpathys_ids():
    folder = require_shared("data", "coco")
    annotations = folder / "captions_with_images.json"
    cfg = PrepareConfig(
        source="coco",
        images=str(folder / "images"),
        annotations=[str(annotations)],
        split_lists=str(folder / "splits"),
    )
    splits = load_source(cfg)
    truth = {i["id"]: i["karpathy"] for i in json.loads(annotations.read_text())["images"]}
    assert {split: len(records) for split, records in splits.items()} == {
        "train": 383,
        "val": 46,
        "test": 56,
    }
    for split in ("val", "test"):
        assert {truth[r.image_id] for r in splits[split]} == {split}
    assert not {truth[r.image_id] for r in splits["train"]} & {"val", "test"}
    assert all(r.image.path.is_file() for records in splits.values() for r in records)


def test_flickr8k_in_both_formats(flickr, tmp_path):
    splits = load_source(flickr)
    assert {s: len(rs) for s, rs in splits.items()} == {"train": 2, "val": 1, "test": 1}
    assert splits["train"][0].captions == ("A dog , running .", "A dog")
    token = tmp_path / "Flickr8k.token.txt"
    token.write_text("a.jpg#0\tA dog , running .\na.jpg#1\tA dog\nb.jpg#0\tB\n")
    again = load_source(replace(flickr, captions=str(token)))
    assert again["train"][0].captions == splits["train"][0].captions


@pytest.mark.shared
def test_the_real_flickr8k():
    folder = require_shared("data", "flickr8k")
    captions, images = str(folder / "captions.txt"), str(folder / "images")
    cfg = PrepareConfig(
        source="flickr8k", captions=captions, images=images, split_lists=str(folder)
    )
    splits = load_source(cfg)
    there = {s: sum(r.image.path.is_file() for r in rs) for s, rs in splits.items()}
    assert there == {"train": 3991, "val": 1000, "test": 1000}
    assert all(len(r.captions) == 5 for rs in splits.values() for r in rs)


def test_prepare_counts_what_it_skips_and_leaves_finished_splits_alone(flickr, coco, tmp_path):
    lines = []
    manifests = prepare(flickr, report=lines.append)
    assert manifests["train"].records == 1
    assert manifests["train"].skipped == {"missing image": 1}
    assert lines[0].startswith("train: 1 records in 1 shards") and "1 missing image" in lines[0]
    lines.clear()
    assert prepare(replace(flickr, workers=2), report=lines.append) == manifests
    assert all("left alone" in line for line in lines) and len(lines) == 3
    manifests["train"].path(0).unlink()
    assert prepare(flickr, report=lines.append) == manifests
    with pytest.raises(DataError, match=r"other settings \(seed was 0, is 1\).*set out to"):
        prepare(replace(flickr, seed=1), report=lines.append)
    assert prepare(coco_in(coco, tmp_path / "coco"), report=lines.append)["train"].skipped == {
        "missing image": 1,
        "no captions": 1,
    }


def coco_in(cfg, out):
    return replace(cfg, out=str(out), images=put_images(out.parent / "more", "000000000001.jpg"))


def test_shards_of_unknown_origin_are_not_touched(flickr, tmp_path):
    foreign = tmp_path / "out/train"
    foreign.mkdir(parents=True)
    (foreign / "00000.tar").write_bytes(b"")
    with pytest.raises(DataError, match="not made here"):
        prepare(flickr, report=lambda _: None)
    assert [p.name for p in foreign.iterdir()] == ["00000.tar"]


def test_files_that_are_no_images_are_counted(flickr, tmp_path):
    (tmp_path / "images/a.jpg").write_bytes(b"<html>")
    (tmp_path / "images/gone.jpg").write_bytes(encode(Image.new("RGB", (4, 4)), "PNG"))
    manifest = prepare(flickr, report=lambda _: None)["train"]
    assert manifest.skipped == {"not an image": 1} and manifest.records == 1
    (tmp_path / "images/b.jpg").write_bytes(b"<html>")
    with pytest.raises(DataError, match="none of 1 records"):
        prepare(replace(flickr, out=str(tmp_path / "second")), report=lambda _: None)


@pytest.mark.parametrize("name", ["a\0.jpg", f"{'a' * 5000}.jpg"], ids=["nul", "long"])
@pytest.mark.parametrize("source", ["coco", "karpathy", "folder", "mme"])
def test_a_name_that_can_be_no_files_is_counted(tmp_path, source, name):
    images = put_images(tmp_path / "images", "b.jpg")
    listed, table = tmp_path / "listed.json", tmp_path / "existence.txt"
    cfg = PrepareConfig(source=source, images=images, out=str(tmp_path / "out"), workers=0)
    if source == "coco":
        content = annotations((1, ["one"]), (2, ["two"]))
        content["images"] = [{"id": 1, "file_name": "b.jpg"}, {"id": 2, "file_name": name}]
        cfg = replace(cfg, annotations=[put_json(listed, content)])
    elif source == "karpathy":
        made = {"split": "train", "sentences": [{"raw": "one"}]}
        content = [
            {**made, "filename": "b.jpg", "cocoid": 1},
            {**made, "filename": "c.jpg", "filepath": name, "cocoid": 2},
            {**made, "filename": f"x/{name}/d", "cocoid": 3},
        ]
        cfg = replace(cfg, source="coco", karpathy=put_json(listed, {"images": content}))
    elif source == "folder":
        rows = [{"image": each, "caption": "one"} for each in ("b.jpg", name)]
        cfg = replace(cfg, captions=put_json(listed, rows))
    else:
        asked = [f"{each}\tIs it?\t{a}\n" for each in ("b.jpg", name) for a in ("Yes", "No")]
        table.write_text("".join(asked))
        cfg = replace(cfg, images=str(tmp_path))
    (manifest,) = prepare(cfg, report=lambda line: None).values()
    assert manifest.records == 1 and manifest.skipped["not a file's name"] == 1


def test_images_on_a_failing_disk_are_tried_again_and_then_fatal(flickr, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    real, failures = Path.read_bytes, []

    def flaky(path):
        if path.name == "a.jpg" and len(failures) < limit:
            failures.append(path)
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", flaky)
    limit = 2
    assert prepare(flickr, report=lambda _: None)["train"].records == 1
    limit = 99
    with pytest.raises(DataError, match=r"a.jpg: cannot be read after 5 tries \(Input/output"):
        prepare(replace(flickr, out=f"{flickr.out}2"), report=lambda _: None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "flickr"}, r"source='flickr'.*did you mean 'flickr8k'\?"),
        ({"source": ""}, "source=''.*choose one of these"),
        ({"out": ""}, "out='': is not set; set out to"),
        ({"images": "/nowhere"}, "images='/nowhere': no such folder; set images to"),
        ({"images": "/tmp"}, "images='/tmp': holds none of the images.*a.jpg"),
        ({"captions": ""}, "captions='': is not set; set captions to"),
        ({"captions": "/no.txt"}, "captions='/no.txt': no such file"),
        ({"split_lists": "/nowhere"}, "split_lists='/nowhere': no such folder"),
        ({"source": "coco"}, r"annotations='': is not set; .*captions_train2014"),
        ({"source": "coco", "karpathy": "/no.json"}, "karpathy='/no.json': no such file"),
        ({"source": "scenes", "image_size": 8}, "image_size=8: too few pixels"),
        ({"source": "scenes", "style": "odd"}, "style='odd': no such style"),
        ({"source": "scenes", "counts": {"train": -1}}, "counts.train=-1: negative"),
    ],
)
def test_wrong_settings_are_one_line_and_nothing_is_written(flickr, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        prepare(replace(flickr, **change), report=lambda _: None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_files_in_another_format_are_one_line(coco, flickr, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("hello\nworld\n")
    array = put_json(tmp_path / "array.json", [1])
    other = put_json(tmp_path / "other.json", {"images": [{"id": 1}]})
    for cfg in (
        replace(flickr, captions=str(text)),
        replace(coco, annotations=[str(text)]),
        replace(coco, annotations=[array]),
        replace(coco, annotations=[other]),
        replace(coco, karpathy=other),
    ):
        with pytest.raises(UserError) as caught:
            load_source(cfg)
        assert "\n" not in str(caught.value)
        assert re.search("get it again|name Flickr8k's", str(caught.value))
