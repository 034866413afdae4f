"""Which export a user means, and the recipe that comes along with it."""

from pathlib import Path

import pytest

from pipeline.config import Config, STConfig
from pipeline.errors import ConfigError
from pipeline.export_files import save_export
from pipeline.exports import find_export
from pipeline.phases import phases_before
from pipeline.progress import Progress
from pipeline.recipe import load_recipe


def write(folder: Path) -> Path:
    made_by = Config(name="made", st=STConfig(prefix_length=7))
    save_export(folder, {}, Progress(), {"fingerprint": "f", "phase": "x"}, made_by)
    return folder


def test_an_export_is_found_by_its_folder_its_phase_and_its_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    aligned = write(run / "st_align" / "export")
    for named in (aligned, aligned.parent, run):
        assert find_export(named, "checkpoint") == aligned
    (run / "llm_tune" / "export").mkdir(parents=True)  # not finished
    assert find_export(run, "checkpoint") == aligned
    write(run / "encoder_adapt" / "export")
    assert find_export(run, "checkpoint") == aligned
    tuned = write(run / "llm_tune" / "export")
    assert find_export(run, "checkpoint") == tuned


def test_a_folder_without_an_export_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.export=.* holds no finished export"):
        find_export(tmp_path, "evaluate.export")


def test_a_checkpoint_brings_its_recipe_along(tmp_path: Path) -> None:
    write(tmp_path / "run" / "llm_tune" / "export")
    arguments = [f"checkpoint={tmp_path / 'run'}", "images=photos", "st.num_heads=3"]
    config = load_recipe(arguments, "caption")
    assert (config.name, config.st.prefix_length, config.st.num_heads) == ("made", 7, 3)
    assert (config.caption.images, config.caption.checkpoint) == ("photos", str(tmp_path / "run"))
    named = load_recipe([*arguments, "recipe=clipcap_coco"], "caption")
    assert (named.name, named.st.prefix_length) == ("clipcap_coco", 10)


def test_a_stages_own_keys_work_with_their_full_names_and_for_that_stage_only() -> None:
    assert load_recipe(["caption.images=photos"], "caption").caption.images == "photos"
    with pytest.raises(ConfigError, match="unknown key 'images'"):
        load_recipe(["images=photos"], "export")


def test_an_export_without_its_recipe_asks_for_one(tmp_path: Path) -> None:
    (write(tmp_path / "old") / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"holds no config\.yaml; name the recipe"):
        load_recipe([f"checkpoint={tmp_path / 'old'}"], "caption")


def test_the_phases_before_end_at_an_export_that_is_named() -> None:
    config = Config()
    assert phases_before(config, "encoder_adapt") == []
    assert phases_before(config, "llm_tune") == ["encoder_adapt", "st_align"]
    assert phases_before(config, "evaluate") == ["encoder_adapt", "st_align", "llm_tune"]
    config.st_align.init_from = "somewhere"
    assert phases_before(config, "llm_tune") == ["st_align"]
    config.llm_tune.init_from = "somewhere"
    assert phases_before(config, "llm_tune") == []
    assert phases_before(config, "evaluate") == ["llm_tune"]
    config.evaluate.export = "somewhere"
    assert phases_before(config, "evaluate") == []
    config = Config()
    config.llm_tune.enabled = config.encoder_adapt.enabled = False
    assert phases_before(config, "evaluate") == ["st_align"]
