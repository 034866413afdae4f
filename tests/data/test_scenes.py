"""Drawn scenes: reproducible, true to their captions, and two styles that differ."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.config import PrepareConfig
from pipeline.data.prepare import prepare
from pipeline.data.reader import ShardReader
from pipeline.data.sources import load_source
from pipeline.data.sources.drawing import PALETTES, SHAPES

NUMBERS = {"a": 1, "an": 1, "one": 1, "single": 1, "two": 2, "three": 3, "four": 4}
NUMBERS |= {"pair": 2, "trio": 3}


def scenes(style="general", **options):
    return load_source(PrepareConfig(source="scenes", style=style, **options))


def drawn(record):
    return np.asarray(Image.open(io.BytesIO(record.image()[0])).convert("RGB")).astype(int)


def test_a_scene_depends_on_its_place_alone():
    few, many = scenes(counts={"train": 5}), scenes(counts={"train": 50, "val": 9})
    assert few["train"][4] == many["train"][4] == many["train"][-46]
    assert few["train"][4].image() == many["train"][4].image()
    others = [many["val"][4], scenes(seed=1)["train"][4], scenes("target")["train"][4]]
    assert all(other.captions != few["train"][4].captions for other in others)
    with pytest.raises(IndexError):
        few["train"][5]


def test_splits_show_different_things():
    for style in PALETTES:
        shown = {
            split: {repr((r.image.scene.groups, r.image.scene.relation)) for r in rs}
            for split, rs in scenes(style, counts={"train": 300, "val": 60, "test": 60}).items()
        }
        assert not shown["train"] & shown["val"] and not shown["train"] & shown["test"]
        assert not shown["val"] & shown["test"]


def count_objects(picture):
    """The number of connected patches that are not background."""
    left = {(int(y), int(x)) for y, x in np.argwhere((picture < 250).any(axis=2))}
    count = 0
    while left:
        count, edge = count + 1, [left.pop()]
        while edge:
            y, x = edge.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge.extend(near)
    return count


def test_pictures_show_as_many_objects_as_said():
    for record in scenes(counts={"train": 40})["train"]:
        assert count_objects(drawn(record)) == record.extra["objects"]


@pytest.mark.parametrize("style", list(PALETTES))
def test_captions_are_true_and_five(style):
    synonyms = {"disc": "circle", "box": "square", "boxe": "square", "wedge": "triangle"}
    synonyms |= {
        "rhombus": "diamond",
        "rhombuse": "diamond",
        "plus sign": "cross",
        "crosse": "cross",
    }
    nouns = "|".join([*synonyms, *SHAPES])
    phrase = re.compile(
        rf"({'|'.join(NUMBERS)})(?: of)?(?: (?:small|large|tiny|big))?"
        rf"(?: ({'|'.join(PALETTES[style])}))? ({nouns})s?\b"
    )
    for record in scenes(style, counts={"val": 150})["val"]:
        groups = record.image.scene.groups
        assert len(set(record.captions)) == 5
        for caption in record.captions:
            found = phrase.findall(caption)
            assert len(found) == len(groups), caption
            for number, colour, noun in found:
                assert any(
                    NUMBERS[number] == g.count
                    and colour in ("", g.colour)
                    and synonyms.get(noun, noun) == g.shape
                    for g in groups
                ), caption


def test_relations_hold_in_the_picture():
    for record in scenes(counts={"train": 100})["train"]:
        scene = record.image.scene
        if scene.relation is None:
            continue
        axis = "x" if scene.relation == "left" else "y"
        first = [getattr(s, axis) + s.radius for s in scene.spots if s.group == 0]
        second = [getattr(s, axis) - s.radius for s in scene.spots if s.group == 1]
        assert max(first) < min(second)


def test_styles_look_and_read_differently():
    general, target = scenes()["train"], scenes("target")["train"]
    assert drawn(general[0]).mean() > 180 and drawn(target[0]).mean() < 90
    assert general[0].image()[1] == "png" and target[0].image()[1] == "jpg"
    words = [
        {w for i in range(200) for c in split[i].captions for w in c.split()}
        for split in (general, target)
    ]
    assert {"red", "star", "three"} <= words[0] & words[1]
    assert {"teal", "wedge", "tiny"} <= words[1] - words[0]


def test_scenes_become_shards(tmp_path):
    cfg = PrepareConfig(
        source="scenes", out=str(tmp_path), counts={"train": 30}, records_per_shard=20, workers=0
    )
    manifest = prepare(cfg, report=lambda _: None)["train"]
    raw = ShardReader(manifest, max_pixels=10**5).read(1, 3)
    assert len(raw.data["captions"]) == 5
    grown = replace(cfg, counts={"train": 30, "val": 5}, image_size=64)
    lines = []
    assert prepare(grown, report=lines.append)["val"].records == 5
    assert "left alone" in lines[0]
