"""A task decides what becomes of a record: the same family reads captions and questions."""

import dataclasses
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.data.faults import ContentFault
from pipeline.data.prompts import IGNORE
from pipeline.data.reader import RawRecord
from pipeline.errors import ConfigError
from pipeline.models.multimodal import IMAGE_SLOT
from pipeline.models.scratch import train_tokenizer
from pipeline.tasks import (
    all_texts,
    dummy_row,
    prompt_rows,
    question_format,
    training_rows,
    true_texts,
)
from tests.data.questions import problem

TOKENIZER = train_tokenizer(["Question: which? Answer: The answer is A."] * 4, 300)
EOS = TOKENIZER.eos_token_id
ASKED = RawRecord("1", b"", {**problem(), "captions": ["a dog", "a cat"]}, "shard")
FAMILIES = ("clipcap", "lavin", "llama_adapter", "text")


def recipe(family: str, task: str) -> Config:
    config = Config(family=family)
    config.st.prefix_length = 3
    config.data.task, config.data.max_tokens = task, 640
    return config


@pytest.mark.parametrize("task", ["captions", "scienceqa"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("image", [b"png", None])
def test_a_row_goes_on_where_its_prompt_ends(family: str, task: str, image: bytes | None) -> None:
    config, raw = recipe(family, task), dataclasses.replace(ASKED, image=image)
    captions = ASKED.data["captions"]
    rows = training_rows(config, TOKENIZER)(raw, captions)
    (prompt,) = prompt_rows(config, TOKENIZER)(raw, captions)
    assert len(rows) == (2 if task == "captions" else 1)
    slots = {"clipcap": 3, "lavin": 6}.get(family, 0) * (image is not None)
    for row in rows:
        assert row.ids[: len(prompt.ids)] == prompt.ids
        assert row.ids.count(IMAGE_SLOT) == slots
        assert row.labels == [IGNORE] * len(prompt.ids) + row.ids[len(prompt.ids) :]
        assert row.ids[-1] == EOS
    assert set(prompt.labels) <= {IGNORE}
    first = TOKENIZER.decode(rows[0].ids[len(prompt.ids) : -1]).strip()
    assert first == true_texts(config, raw)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dummy_has_a_target_and_no_image(family: str) -> None:
    row = dummy_row(recipe(family, "scienceqa"), TOKENIZER)
    assert IMAGE_SLOT not in row.ids and len(row.ids) > 1
    assert row.labels == [IGNORE] * (len(row.ids) - 1) + [EOS]


def test_a_tokenizer_sees_all_that_a_model_will(tmp_path: Path) -> None:
    config = recipe("lavin", "scienceqa")
    texts = list(all_texts(config, ASKED))
    assert texts[:2] == ["a dog", "a cat"] and "West Virginia" in texts[2]
    assert list(all_texts(recipe("lavin", "captions"), ASKED)) == texts[:2]
    with pytest.raises(ContentFault, match="no ScienceQA problem"):
        list(all_texts(config, RawRecord("1", b"", {"captions": ["a"]}, "shard")))


def test_an_unknown_format_is_named_with_its_key() -> None:
    config = recipe("lavin", "scienceqa")
    config.scienceqa.format = "QCM-X"
    with pytest.raises(ConfigError, match=r"scienceqa\.format: 'QCM-X' is no format"):
        question_format(config)
