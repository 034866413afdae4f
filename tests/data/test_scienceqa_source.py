"""ScienceQA's files as records: what is taken over, how it is split, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import PrepareConfig
from pipeline.data.manifest import load_manifest
from pipeline.data.prepare import prepare
from pipeline.data.reader import ShardReader
from pipeline.data.sources import load_source
from pipeline.data.sources.scienceqa import split_of
from pipeline.errors import ConfigError, DataError
from tests.data.questions import problem, put_scienceqa
from tests.helpers import require_shared

IMAGE = "image.png"
PINNED = "train train val train train train test test train train val"
RESPLIT = {"train": 3376, "val": 441, "test": 424}


def config(folder: Path, **changes: Any) -> PrepareConfig:
    values = {
        "source": "scienceqa",
        "images": str(folder / "images"),
        "problems": [str(folder / "problems.json")],
        "out": str(folder / "out"),
        "workers": 0,
        **changes,
    }
    return PrepareConfig(**values)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    problems = {
        "1": problem(image=IMAGE),
        "2": problem(split="val", hint="A hint."),
        "7": problem(split="test", image=IMAGE, answer=2, chart={"any": ["thing"]}),
        "9": problem(split="train"),
    }
    pid_splits = {"train": ["9", "1"], "val": ["2"], "test": ["7"], "minitrain": ["9"]}
    captions = {"model": "some", "captions": {"1": "a map of the south", "7": "a chart"}}
    return put_scienceqa(tmp_path, problems, pid_splits=pid_splits, captions=captions)


def pids(splits: Any) -> dict[str, list[str]]:
    return {split: [record.key for record in records] for split, records in splits.items()}


def test_a_problem_says_its_split_and_lists_may_say_more(data: Path) -> None:
    assert pids(load_source(config(data))) == {"train": ["1", "9"], "val": ["2"], "test": ["7"]}
    listed = config(data, pid_splits=str(data / "pid_splits.json"))
    assert pids(load_source(listed)) == {"train": ["9", "1"], "val": ["2"], "test": ["7"]}
    mini = replace(listed, splits=["minitrain", "test"])
    assert pids(load_source(mini)) == {"minitrain": ["9"], "test": ["7"]}
    assert pids(load_source(config(data, splits=["val"]))) == {"val": ["2"]}


def test_a_record_holds_the_whole_problem(data: Path) -> None:
    prepare(config(data, captions=str(data / "captions.json")), report=lambda line: None)
    reader = ShardReader(load_manifest(data / "out" / "test"), max_pixels=10**6)
    raw = reader.read(0, 0)
    stored = json.loads((data / "problems.json").read_text())["7"]
    assert raw.key == raw.data["pid"] == "7"
    assert {key: raw.data[key] for key in stored} == stored
    assert raw.data["caption"] == "a chart"
    assert reader.image(raw).size == (12, 8)
    folder = load_manifest(data / "out" / "train")
    reader = ShardReader(folder, max_pixels=10**6)
    raws = {raw.key: raw for raw in (reader.read(0, i) for i in range(folder.records))}
    assert raws["1"].image is not None and raws["9"].image is None
    assert raws["9"].data["caption"] == ""
    texts = [stored[key] for key in ("question", "lecture", "solution")] + stored["choices"]
    assert raws["9"].data["text_bytes"] == sum(len(text) for text in texts)


def test_without_its_captions_a_record_is_the_same(data: Path) -> None:
    (with_captions,) = load_source(config(data, captions=str(data / "captions.json")))["test"]
    (without,) = load_source(config(data))["test"]
    assert without.extra["caption"] == "" and with_captions.extra["caption"] == "a chart"
    assert without.captions == with_captions.captions
    assert without.captions[0].startswith(problem()["question"])


def test_the_resplit_depends_on_the_pid_alone(data: Path) -> None:
    # Written down: shards of a trial must never mix with those of another rule.
    assert " ".join(split_of(str(pid)) for pid in range(1, 12)) == PINNED
    counts = [split_of(str(pid)) for pid in range(20_000)]
    assert 0.79 < counts.count("train") / 20_000 < 0.81
    assert 0.09 < counts.count("val") / 20_000 < 0.11
    splits = load_source(config(data, resplit=True))
    assert pids(splits) == {"train": ["1", "2", "9"], "test": ["7"]}
    assert {r.key for rs in splits.values() for r in rs if r.image and r.image()} == {"1", "7"}


def test_of_several_files_the_first_that_holds_a_pid_counts(data: Path) -> None:
    other = {"7": problem(split="test", answer=2, lecture="rewritten"), "8": problem(split="val")}
    second = put_scienceqa(data / "second", other)
    both = config(data, problems=[str(data / "problems.json"), str(second / "problems.json")])
    splits = load_source(both)
    assert pids(splits) == {"train": ["1", "9"], "val": ["2", "8"], "test": ["7"]}
    assert splits["test"][0].extra["lecture"] == problem()["lecture"]
    put_scienceqa(second, {"7": problem(split="test", answer=1)})
    with pytest.raises(DataError, match="pid 7: another answer than in a file before"):
        load_source(both)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 3}, "answer 3 is no index of its 3 choices"),
        ({"answer": -1}, "answer -1 is no index"),
        ({"caption": 7}, "caption is 7, no text"),
        ({"answer": "A"}, "answer 'A' is no index"),
        ({"answer": True}, "answer True is no index"),
        ({"split": "dev"}, "unknown split 'dev'"),
        ({"choices": ["only"]}, "1 choices"),
        ({"choices": "AB"}, "choices is 'AB'"),
        ({"question": " "}, "question is empty"),
        ({"hint": None}, "hint is None, no text"),
        ({"subject": 3}, "subject is 3, no text"),
        ({"image": "../../x.png"}, "image is '../../x.png', neither a file name nor null"),
        ({"image": ".."}, "image is '..', neither"),
        ({"image": ""}, "image is '', neither"),
        ({"image": "a\0.png"}, "image is 'a\\x00.png', neither"),
    ],
)
def test_a_wrong_value_is_refused_with_the_pid(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "problems.json").write_text(json.dumps({"3": problem(), "41": problem(**changes)}))
    with pytest.raises(DataError, match=f"pid 41: {re.escape(message)}") as caught:
        load_source(config(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["question", "choices", "answer", "hint", "image", "solution"])
def test_a_missing_field_is_refused_with_the_pid(tmp_path: Path, field: str) -> None:
    lacking = problem()
    del lacking[field]
    (tmp_path / "images").mkdir()
    (tmp_path / "problems.json").write_text(json.dumps({"5": lacking}))
    with pytest.raises(DataError, match=f"pid 5: field {field} is missing"):
        load_source(config(tmp_path))


def test_a_pid_that_is_there_twice_is_refused_instead_of_taking_the_last(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    first, second = (json.dumps(problem(answer=answer)) for answer in (0, 1))
    (tmp_path / "problems.json").write_text(f'{{"5": {first}, "5": {second}}}')
    with pytest.raises(DataError, match="'5' is there twice"):
        load_source(config(tmp_path))


def test_a_file_without_a_problem_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "problems.json").write_text("{}")
    with pytest.raises(DataError, match=r"problems\.json: holds no problem"):
        load_source(config(tmp_path))


def test_what_is_unknown_about_a_problem_is_no_fault(tmp_path: Path) -> None:
    bare = {k: v for k, v in problem(grade=None).items() if k not in ("subject", "topic", "skill")}
    put_scienceqa(tmp_path, {"5": bare})
    (tmp_path / "images").mkdir()
    (record,) = load_source(config(tmp_path))["train"]
    assert record.extra["grade"] is None and "subject" not in record.extra


def test_lists_must_fit_the_problems(data: Path) -> None:
    lists = data / "pid_splits.json"
    cfg = config(data, pid_splits=str(lists))
    lists.write_text(json.dumps({"train": ["1", "77", "78"], "val": [], "test": []}))
    with pytest.raises(DataError, match=r"'train' names pid 77 and 1 more that problems"):
        load_source(cfg)
    lists.write_text(json.dumps({"train": ["1", "1"], "val": [], "test": []}))
    with pytest.raises(DataError, match="'train' names pid 1 twice"):
        load_source(cfg)
    lists.write_text(json.dumps({"../train": ["1"]}))
    with pytest.raises(ConfigError, match=r"'\.\./train' is no list"):
        load_source(replace(cfg, splits=["../train"]))
    lists.write_text(json.dumps({"train": ["2"], "val": [], "test": []}))
    with pytest.raises(DataError, match=r"pid 2 is in 'train', but its problem says 'val'"):
        load_source(cfg)
    with pytest.raises(ConfigError, match=r"'minival' is no list of .* test, train, val"):
        load_source(replace(cfg, splits=["minival"]))
    with pytest.raises(ConfigError, match="no such split without pid_splits"):
        load_source(config(data, splits=["minival"]))
    with pytest.raises(ConfigError, match="two ways to split"):
        load_source(replace(cfg, resplit=True))


def test_one_missing_image_is_skipped_and_all_of_a_split_are_an_error(data: Path) -> None:
    problems = json.loads((data / "problems.json").read_text())
    put_scienceqa(data, {**problems, "11": problem(image=IMAGE)})
    (data / "images" / "train" / "11" / IMAGE).unlink()
    manifests = prepare(config(data), report=lambda line: None)
    assert manifests["train"].records == 2
    assert manifests["train"].skipped == {"missing image": 1}
    skipped = (data / "out" / "train" / "skipped.jsonl").read_text()
    assert json.loads(skipped)["key"] == "11" and f"train/11/{IMAGE}" in skipped
    (data / "images" / "train" / "1" / IMAGE).unlink()
    with pytest.raises(ConfigError, match=r"none of the images .*train/1/image.png"):
        load_source(config(data))


def test_settings_of_other_sources_do_not_know_of_the_resplit(data: Path) -> None:
    prepare(config(data), report=lambda line: None)
    prepare(config(data, splits=["val"]), report=lambda line: None)  # the same shards
    with pytest.raises(DataError, match="resplit was False, is True"):
        prepare(config(data, resplit=True), report=lambda line: None)
    prepare(
        PrepareConfig(source="scenes", out=str(data / "scenes"), counts={"val": 2}, workers=0),
        report=lambda line: None,
    )
    settings = json.loads((data / "scenes" / "val" / "prepare.json").read_text())
    assert not {"resplit", "splits", "problems", "pid_splits"} & set(settings)


@pytest.mark.shared
def test_the_real_problems_load(tmp_path: Path) -> None:
    shared = require_shared("data", "scienceqa")
    cfg = config(shared, problems=[str(shared / "problems_test.json")], out=str(tmp_path))
    splits = load_source(replace(cfg, captions=str(shared / "captions.json")))
    assert list(splits) == ["test"] and len(splits["test"]) == 4241
    images = [record for record in splits["test"] if record.image is not None]
    assert len(images) == 2017 and all(record.extra["caption"] for record in images)
    listed = replace(cfg, pid_splits=str(shared / "pid_splits.json"), splits=["test", "minitest"])
    assert {s: len(rs) for s, rs in load_source(listed).items()} == {"test": 4241, "minitest": 424}
    resplit = load_source(replace(cfg, resplit=True))
    assert {s: len(rs) for s, rs in resplit.items()} == RESPLIT
    names = ("problems_test.json", "problems_first1773_fullmeta.json")
    both = [str(shared / name) for name in names]
    merged = load_source(replace(cfg, problems=both, splits=["test"]))
    assert len(merged["test"]) == 4241
