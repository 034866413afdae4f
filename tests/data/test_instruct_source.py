"""Instruction sets as records: every usual form, what is refused with which reason, and splits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import PrepareConfig
from pipeline.data.conversations import Conversation, Exchange
from pipeline.data.faults import ContentFault
from pipeline.data.manifest import load_manifest
from pipeline.data.prepare import prepare
from pipeline.data.reader import ShardReader
from pipeline.data.sources import load_source
from pipeline.data.sources.dialogue import Dialogue, read_dialogue
from pipeline.errors import ConfigError, DataError
from tests.data.samples import jpeg
from tests.helpers import require_shared

HELLO = Conversation((Exchange("Hello?", "Hi."), Exchange("Who?", "Me.")))
SHAREGPT = [
    {"from": "human", "value": "Hello?"},
    {"from": "gpt", "value": "Hi."},
    {"from": "human", "value": "Who?"},
    {"from": "gpt", "value": "Me."},
]
MESSAGES = [
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me."},
]


def marked(turns: list[dict[str, str]], number: int = 0) -> list[dict[str, str]]:
    """The turns with an image's mark before one of them."""
    value = f"<image>\n{turns[number]['value']}"
    return [*turns[:number], {**turns[number], "value": value}, *turns[number + 1 :]]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"conversations": SHAREGPT}, Dialogue(HELLO, "")),
        ({"id": "7", "messages": MESSAGES}, Dialogue(HELLO, "")),
        ({"image": "a/b.jpg", "conversations": marked(SHAREGPT)}, Dialogue(HELLO, "a/b.jpg")),
        ({"images": ["b.jpg", "b.jpg"], "messages": MESSAGES}, Dialogue(HELLO, "b.jpg")),
        ({"images": "b.jpg", "messages": MESSAGES}, Dialogue(HELLO, "b.jpg")),
        ({"images": ["./b.jpg", "b.jpg"], "messages": MESSAGES}, Dialogue(HELLO, "./b.jpg")),
        ({"image": None, "conversations": SHAREGPT}, Dialogue(HELLO, "")),
        (  # the rest of a talk that was cut
            {"conversations": [{"from": "gpt", "value": "So."}, *SHAREGPT]},
            Dialogue(HELLO, ""),
        ),
        (
            {"system": "Be brief.", "conversations": SHAREGPT},
            Dialogue(replace(HELLO, system="Be brief."), ""),
        ),
        (  # no mark of an image, but a word of the answer
            {"instruction": "RSS?", "output": "<image><url>a</url></image>"},
            Dialogue(Conversation((Exchange("RSS?", "<image><url>a</url></image>"),)), ""),
        ),
        (  # what nobody answered
            {"conversations": [*SHAREGPT, {"from": "human", "value": "And?"}]},
            Dialogue(HELLO, ""),
        ),
        (
            {"conversations": [{"from": "system", "value": "Be brief."}, *SHAREGPT]},
            Dialogue(replace(HELLO, system="Be brief."), ""),
        ),
        (
            {"instruction": "Add.", "input": "1 and 2", "output": "3"},
            Dialogue(Conversation.asking("Add.\n1 and 2", "3"), ""),
        ),
        (
            {"instruction": "Who?", "input": "", "output": "Me.", "history": [["Hello?", "Hi."]]},
            Dialogue(HELLO, ""),
        ),
        (
            {"id": "1", "image": "c.jpg", "instruction": "What?", "output": "A cat."},
            Dialogue(Conversation.asking("What?", "A cat."), "c.jpg"),
        ),
    ],
)
def test_the_usual_forms_are_read(entry: dict[str, Any], expected: Dialogue) -> None:
    assert read_dialogue(entry) == expected


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"text": "Hello"}, "no conversation"),
        ({"conversations": ["Hello"]}, "no conversation"),
        ({"instruction": "Go."}, "no conversation"),
        ({"instruction": "Go.", "output": "On.", "history": [["a"]]}, "no conversation"),
        ({"instruction": "Go.", "output": None}, "not text"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "not text"),
        ({"instruction": "Go.", "output": " \n"}, "empty turn"),
        ({"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>"}]}, "no answer"),
        ({"image": "a.jpg", "instruction": "<image>", "output": "A cat."}, "empty turn"),
        ({"conversations": []}, "no answer"),
        ({"conversations": SHAREGPT[1:2]}, "no answer"),
        ({"conversations": [SHAREGPT[0], *SHAREGPT]}, "turns out of order"),
        ({"conversations": [{"from": "tool", "value": "x"}, *SHAREGPT]}, "unknown role"),
        ({"conversations": [{"from": ["human"], "value": "x"}, *SHAREGPT]}, "unknown role"),
        ({"messages": [{"role": {}, "content": "x"}, *MESSAGES]}, "unknown role"),
        ({"images": ["a.jpg", "b.jpg"], "messages": MESSAGES}, "more than one image"),
        ({"images": 1, "messages": MESSAGES}, "not text"),
        ({"images": True, "messages": MESSAGES}, "not text"),
        ({"images": [["a.jpg"]], "messages": MESSAGES}, "not text"),
        ({"conversations": marked(SHAREGPT, 2)}, "image mark without an image"),
        ({"instruction": "\ud800", "output": "x"}, "invalid UTF-8"),
    ],
)
def test_what_cannot_be_learnt_from_says_why(entry: dict[str, Any], reason: str) -> None:
    with pytest.raises(ContentFault) as caught:
        read_dialogue(entry)
    assert caught.value.reason == reason


def config(folder: Path, *files: Path, **changes: Any) -> PrepareConfig:
    return PrepareConfig(
        source="instruct",
        annotations=[str(file) for file in files],
        out=str(folder / "out"),
        workers=0,
        **changes,
    )


def put(file: Path, entries: list[Any]) -> Path:
    """A JSON list, or lines where the file is called so."""
    lines = "\n".join(map(json.dumps, entries))
    file.write_text(lines if file.suffix == ".jsonl" else json.dumps(entries))
    return file


@pytest.mark.parametrize("name", ["talk.json", "talk.jsonl"])
def test_records_hold_whole_conversations_and_bad_ones_are_counted(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    entries = [
        {"image": "a.jpg", "conversations": marked(SHAREGPT)},
        {"conversations": SHAREGPT},
        {"conversations": []},
        {"image": "gone.jpg", "conversations": marked(SHAREGPT)},
        {"image": "../a.jpg", "conversations": marked(SHAREGPT)},
        ["no", "object"],
    ]
    lines: list[str] = []
    cfg = config(tmp_path, put(tmp_path / name, entries), images=str(tmp_path))
    manifest = prepare(cfg, report=lines.append)["train"]
    assert manifest.skipped == {
        "no answer": 1,
        "missing image": 1,
        "path outside the image folder": 1,
        "bad JSON": 1,
    }
    assert "1 no answer (talk-3)" in lines[0]
    reader = ShardReader(load_manifest(tmp_path / "out" / "train"), max_pixels=10**6)
    found = {raw.key: raw for raw in (reader.read(0, i) for i in range(manifest.records))}
    assert set(found) == {"talk-1", "talk-2"}
    assert found["talk-1"].image == jpeg() and found["talk-2"].image is None
    for raw in found.values():
        assert Conversation.of(raw.data) == HELLO
        assert raw.data["captions"] == ["Hi.", "Me."]
        assert raw.data["text_bytes"] == len("Hello?Hi.Who?Me.")


def test_a_line_that_is_no_json_is_one_bad_record(tmp_path: Path) -> None:
    file = put(tmp_path / "talk.jsonl", [{"conversations": SHAREGPT}] * 2)
    file.write_text(file.read_text() + '\n{"conversations": [\n')
    records = load_source(config(tmp_path, file))["train"]
    assert [r.fault.reason if r.fault else None for r in records] == [None, None, "bad JSON"]


def test_a_name_that_can_be_no_files_is_one_bad_record(tmp_path: Path) -> None:
    """At once: it is no fault of the file system's, which would be tried again for seconds."""
    (tmp_path / "a.jpg").write_bytes(jpeg())
    names = ["a.jpg", "a\0.jpg", f"{'a' * 5000}.jpg", f"{'a/' * 5000}a.jpg"]
    entries = [{"image": name, "instruction": "What?", "output": "That."} for name in names]
    cfg = config(tmp_path, put(tmp_path / "a.json", entries), images=str(tmp_path))
    manifest = prepare(cfg, report=lambda line: None)["train"]
    assert manifest.records == 1 and manifest.skipped == {"not a file's name": 3}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("begin", ["", "\ufeff", "\n "])
def test_a_list_that_is_cut_off_is_not_taken_for_lines(
    tmp_path: Path, indent: int | None, begin: str
) -> None:
    """Whole files beside it do not hide it, nor do entries that stand on a line of their own."""
    good = put(tmp_path / "good.json", [{"conversations": SHAREGPT}])
    entries = [json.dumps({"conversations": SHAREGPT}, indent=indent) for _ in range(50)]
    file = tmp_path / "cut.json"
    file.write_text(begin + "[\n" + ",\n".join(entries) + ",\n", encoding="utf-8")
    message = rf"annotations={file}: not readable as JSON \(.*line \d+ column \d+.*; get it again"
    with pytest.raises(DataError, match=message):
        load_source(config(tmp_path, good, file))


def test_lines_in_a_file_that_is_called_json_are_read(tmp_path: Path) -> None:
    file = tmp_path / "lines.json"
    file.write_text(put(tmp_path / "a.jsonl", [{"conversations": SHAREGPT}] * 3).read_text())
    assert len(load_source(config(tmp_path, file))["train"]) == 3


def test_held_out_conversations_share_no_image_with_the_others(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg())
    entries = [
        {"image": f"{number % 8}.jpg", "instruction": f"What {number}?", "output": "That."}
        for number in range(40)
    ] + [{"instruction": f"Which {number}?", "output": "This."} for number in range(200)]
    cfg = config(tmp_path, put(tmp_path / "a.json", entries), images=str(tmp_path), held_out=0.25)
    splits = load_source(cfg)
    train, val = ({r.key: r.image_id for r in splits[name]} for name in ("train", "val"))
    assert not set(train) & set(val) and len(train) + len(val) == len(entries)
    about = [{i for i in each.values() if str(i).endswith(".jpg")} for each in (train, val)]
    assert not about[0] & about[1] and about[0] | about[1] == {f"{i}.jpg" for i in range(8)}
    assert 30 <= sum("." not in str(i) for i in val.values()) <= 70  # of 200
    again = load_source(replace(cfg, held_out=0.1))
    assert {r.key for r in again["val"]} <= set(val)
    assert list(load_source(replace(cfg, held_out=0.0))) == ["train"]


def test_mistakes_are_named_with_their_key(tmp_path: Path) -> None:
    file = put(tmp_path / "a.json", [{"image": "a.jpg", "instruction": "What?", "output": "It."}])
    for cfg, kind, message in (
        (config(tmp_path), ConfigError, "annotations='': is not set"),
        (config(tmp_path, file), ConfigError, "names the image 'a.jpg'; set images to"),
        (config(tmp_path, file, images=str(tmp_path)), ConfigError, "holds none of the images"),
        (config(tmp_path, file, file, images=str(tmp_path)), ConfigError, "is called alike"),
        (config(tmp_path, file, held_out=1.0), ConfigError, "held_out=1.0: is a share"),
        (config(tmp_path, put(tmp_path / "b.json", [{}])), DataError, "no usable entry"),
    ):
        with pytest.raises(kind, match=message):
            load_source(cfg)
    (tmp_path / "c.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="holds no list of conversations"):
        load_source(config(tmp_path, tmp_path / "c.json"))


@pytest.mark.shared
def test_the_stored_samples_are_all_usable() -> None:
    folder = require_shared("data", "instruct")
    files = [folder / "alpaca_en_demo.json", folder / "mllm_demo.json"]
    records = load_source(config(folder, *files, images=str(folder)))["train"]
    assert len(records) == 999 + 6 and all(record.fault is None for record in records)
    assert sum(record.image is not None for record in records) == 6
