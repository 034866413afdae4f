"""What a stage makes before it starts, and what it must not take for made."""

import shutil
from pathlib import Path

import pytest
import torch

from pipeline.config import Config
from pipeline.dist import World
from pipeline.errors import ConfigError, DataError
from pipeline.prerequisites import ensure, make_shards
from pipeline.recipe import load_recipe
from tests.data.samples import jpeg
from tests.tiny import write_recipe

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def recipe(folder: Path, *changes: str) -> Config:
    return load_recipe([f"recipe={write_recipe(folder)}", *changes])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("encoder_adapt.train=last:9", "the tower has 4 blocks"),
        ("encoder.arch=ViT-B-23", "did you mean ViT-B-32"),
        ("st.prefix_length=4000", "context of 64; make the prefix shorter$"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_is_made_for_it(
    tmp_path: Path, monkeypatch, change: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_recipe(["recipe=quickstart", f"runs={tmp_path / 'runs'}", change])
    with pytest.raises(ConfigError, match=message):
        ensure(config, ALONE, until="llm_tune")
    assert not list(tmp_path.iterdir())


def test_shards_of_other_settings_are_not_taken_for_the_recipes(tmp_path: Path) -> None:
    make_shards(recipe(tmp_path), ALONE)
    before = (tmp_path / "data/train/manifest.json").stat().st_mtime_ns
    make_shards(recipe(tmp_path), ALONE)
    make_shards(recipe(tmp_path, "prepare.scenes.workers=2"), ALONE)  # changes no byte
    assert (tmp_path / "data/train/manifest.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match=r"other settings \(seed was 0, is 1\); set out to another"):
        make_shards(recipe(tmp_path, "prepare.scenes.seed=1"), ALONE)
    with pytest.raises(DataError, match=r"data/train: .*\(counts was 40, is 41\)"):
        make_shards(recipe(tmp_path, "prepare.scenes.counts.train=41"), ALONE)


def test_shards_outlive_the_raw_data_that_they_were_made_from(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.jpg").write_bytes(jpeg())
    (raw / "c.csv").write_text("image,caption,split\n" + "a.jpg,c,train\na.jpg,c,val\na.jpg,c,test")
    own = [
        "prepare.scenes.source=folder",
        f"prepare.scenes.images={raw}",
        f"prepare.scenes.captions={raw / 'c.csv'}",
    ]
    make_shards(recipe(tmp_path, *own), ALONE)
    (raw / "c.csv").write_text("image,caption,split\na.jpg,other,train\n")
    with pytest.raises(DataError, match="inputs was"):
        make_shards(recipe(tmp_path, *own), ALONE)
    shutil.rmtree(raw)
    make_shards(recipe(tmp_path, *own), ALONE)
    with pytest.raises(DataError, match="seed was 0, is 5"):
        make_shards(recipe(tmp_path, *own, "prepare.scenes.seed=5"), ALONE)
