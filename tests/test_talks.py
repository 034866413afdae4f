"""The tasks of conversations in every family: what is asked, what is true, and what is scored."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import Config, MixConfig, PrepareConfig
from pipeline.data.collate import LanguageBatch
from pipeline.data.faults import ContentFault
from pipeline.data.loader import Share, read_all
from pipeline.data.prepare import prepare
from pipeline.data.prompts import IGNORE
from pipeline.data.reader import RawRecord
from pipeline.errors import ConfigError
from pipeline.models.multimodal import IMAGE_SLOT
from pipeline.models.scratch import train_tokenizer
from pipeline.splits import Images, caption_dataset, open_training
from pipeline.tasks import (
    all_texts,
    caption_prompt,
    prompt_rows,
    scored,
    scoring_rows,
    task_settings,
    training_rows,
    true_texts,
)
from tests.data.chats import CHATML
from tests.data.samples import jpeg
from tests.data.test_conversation_rows import ASKED, TALK

TOKENIZER = train_tokenizer(["Instruction: which? Response: Yes. Response: No."] * 4, 300)
EOS = TOKENIZER.eos_token_id
FAMILIES = ("clipcap", "lavin", "llama_adapter", "text")
DATA = {**ASKED, "messages": TALK.messages(), "captions": ["a dog"]}
RAW = RawRecord("1", b"png", DATA, "shard")


def recipe(family: str, task: str) -> Config:
    config = Config(family=family)
    config.st.prefix_length = 3
    config.data.task, config.data.max_tokens = task, 640
    return config


@pytest.mark.parametrize("task", ["instruct", "mme"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("image", [b"png", None])
def test_a_row_goes_on_where_its_prompt_ends(family: str, task: str, image: bytes | None) -> None:
    config, raw = recipe(family, task), replace(RAW, image=image)
    rows = training_rows(config, TOKENIZER)(raw, ())
    prompts = prompt_rows(config, TOKENIZER)(raw, ())
    truths = true_texts(config, raw)
    slots = {"clipcap": 3, "lavin": 6}.get(family, 0) * (image is not None)
    assert len(rows) == len(prompts) == len(truths) == (1 if task == "instruct" else 2)
    for row, prompt, truth in zip(rows, prompts, truths, strict=True):
        assert row.ids[: len(prompt.ids)] == prompt.ids and row.ids[-1] == EOS
        assert row.ids.count(IMAGE_SLOT) == slots
        assert row.labels[len(prompt.ids) :] == row.ids[len(prompt.ids) :]
        assert TOKENIZER.decode(row.ids[len(prompt.ids) : -1]).strip() == truth


@pytest.mark.parametrize("family", FAMILIES)
def test_yes_and_no_are_scored_behind_the_same_prompt(family: str) -> None:
    config = recipe(family, "mme")
    for row in scoring_rows(config, TOKENIZER)(RAW, ()):
        (target,) = [label for label in row.labels if label != IGNORE]
        assert target == row.ids[-1] and len(row.options) == 2


def test_a_tokenizer_sees_conversations_in_their_words() -> None:
    (text,) = all_texts(recipe("lavin", "instruct"), RAW)
    assert text.startswith("Instruction: What is in the picture?\nResponse: A dog on a meadow.")
    assert text.count("Response:") == 3
    asked = list(all_texts(recipe("lavin", "mme"), RAW))
    assert asked[1] == "Instruction: Is there a cat? Please answer yes or no.\nResponse: No"


@pytest.mark.parametrize("task", ["instruct", "mme"])
def test_a_record_of_another_kind_is_a_fault(task: str) -> None:
    raw = RawRecord("1", None, {"captions": ["a dog"]}, "shard")
    for make in (training_rows, prompt_rows):
        with pytest.raises(ContentFault, match=r"no (conversation|MME questions)"):
            make(recipe("lavin", task), TOKENIZER)(raw, ("a dog",))


def test_an_image_of_no_record_is_asked_for_its_caption() -> None:
    config = recipe("lavin", "instruct")
    row = caption_prompt(config, TOKENIZER)
    assert row.ids.count(IMAGE_SLOT) == 6 and set(row.labels) == {IGNORE}
    captioned = replace(RAW, data={"captions": ["a dog"]})
    assert prompt_rows(config, TOKENIZER)(captioned, ("a dog",)) == (row,)


def test_how_conversations_are_put_is_part_of_what_is_learnt() -> None:
    config = recipe("lavin", "instruct")
    before = task_settings(config)
    config.evaluate.stop = "."  # ends no answer of LaVIN's template
    assert task_settings(config) == before
    config.instruct.caption_question = "What is this?"
    assert task_settings(config) != before
    config.instruct.template = "tokenizer"
    stopping = task_settings(config)
    config.evaluate.stop = None
    assert task_settings(config) != stopping


def test_the_tokenizers_template_must_end_answers() -> None:
    config = recipe("lavin", "instruct")
    config.instruct.template = "tokenizer"
    with pytest.raises(ConfigError, match="has no chat template"):
        training_rows(config, TOKENIZER)
    chats = train_tokenizer(["user: which? assistant: that."] * 4, 300)
    chats.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    chats.chat_template = CHATML
    with pytest.raises(ConfigError, match=r"evaluate\.stop"):
        training_rows(config, chats)
    config.evaluate.stop = "<|im_end|>"
    (row,) = training_rows(config, chats)(RAW, ())
    assert row.labels[-1] == chats.convert_tokens_to_ids("<|im_end|>")


def test_mixed_sets_of_weight_1_come_exactly_once(tmp_path: Path) -> None:
    """Alpaca's form and LLaVA's, records with images and without; a set of weight 2 comes twice."""
    (tmp_path / "a.jpg").write_bytes(jpeg())
    turns = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "That."}]
    sets: dict[str, list[dict[str, object]]] = {
        "llava": [{"image": "a.jpg", "conversations": turns * (i % 3 + 1)} for i in range(23)],
        "alpaca": [{"instruction": f"Add {i}.", "output": "Done."} for i in range(31)],
    }
    for name, entries in sets.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(entries))
        made = {"annotations": [str(tmp_path / f"{name}.json")], "images": str(tmp_path)}
        entry = PrepareConfig(source="instruct", out=str(tmp_path / name), workers=0, **made)
        prepare(replace(entry, records_per_shard=8), report=lambda line: None)
    config = recipe("lavin", "instruct")
    for weight in (1.0, 2.0):
        llava = MixConfig(shards=str(tmp_path / "llava"), weight=weight)
        config.data.mix = [llava, MixConfig(shards=str(tmp_path / "alpaca"))]
        split = open_training(config)
        counts = Counter[str]()
        for rank in (0, 1):
            rows = caption_dataset(
                config,
                split,
                split.plan(8, seed=0),
                Images(None, (2, 4)),
                TOKENIZER,
                Share(rank, 2, 2, 3),
                captions="all",
            )
            for loaded in read_all(rows, workers=0):
                assert not loaded.faults
                for batch in loaded.batches:
                    assert isinstance(batch, LanguageBatch)
                    counts.update(batch.keys)
                    assert int((batch.labels != IGNORE).sum()) == int((batch.weights > 0).sum())
        expected = {f"llava-{i + 1}": weight for i in range(23)}
        assert counts == expected | {f"alpaca-{i + 1}": 1 for i in range(31)}


def test_what_is_scored_can_be_another_task_than_was_learnt() -> None:
    config = recipe("lavin", "instruct")
    config.data.shards = "chats"
    assert scored(config).data == config.data
    config.evaluate.task, config.evaluate.shards = "mme", "mme/shards"
    assert (scored(config).data.task, scored(config).data.shards) == ("mme", "mme/shards")
    assert (config.data.task, config.data.shards) == ("instruct", "chats")
