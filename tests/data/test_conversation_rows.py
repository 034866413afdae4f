"""Rows of conversations: every answer is a target, nothing else is, and nothing is cut by half."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from pipeline.data.chat_templates import ChatTemplate, LavinTemplate, chat_template
from pipeline.data.conversation_rows import (
    OPTIONS,
    ConversationRows,
    InstructRows,
    MMERows,
    questions_of,
)
from pipeline.data.conversations import Conversation, Exchange
from pipeline.data.faults import ContentFault
from pipeline.data.prompts import IGNORE, Row
from pipeline.data.reader import RawRecord
from tests.data.chats import chatml, llama
from tests.data.questions import byte_level, sentence_piece

SLOT, BOS = -1, -2
TOKENIZERS = {
    "byte level": byte_level(),
    "sentence piece": sentence_piece(),
    "chatml": chatml(),
    "llama": llama(),
}
TALK = Conversation(
    (
        Exchange("What is in the picture?", "A dog on a meadow."),
        Exchange("What does it do?", "It runs."),
        Exchange("Why?", "That is not to be seen."),
    )
)
ASKED = {
    "subtask": "count",
    "questions": [
        {"question": "Is there a dog? Please answer yes or no.", "answer": "Yes"},
        {"question": "Is there a cat? Please answer yes or no.", "answer": "No"},
    ],
}
every_template = pytest.mark.parametrize("name", TOKENIZERS)


def layout(prompt: Sequence[int], image: bool) -> list[int]:
    """As a family may have it: BOS, two image slots where there is an image, the prompt."""
    return [BOS, *([SLOT] * 2 if image else []), *prompt]


def template(name: str) -> ChatTemplate:
    tokenizer = TOKENIZERS[name]
    if tokenizer.chat_template is None:
        return LavinTemplate(tokenizer)
    return chat_template("tokenizer", tokenizer, [tokenizer.eos_token_id])


def rows(name: str, max_tokens: int = 10_000) -> ConversationRows:
    return ConversationRows(template(name), layout, max_tokens)


def said(tokenizer: PreTrainedTokenizerFast, row: Row) -> list[str]:
    """The stretches of a row that are targets, as text."""
    stretches: list[list[int]] = [[]]
    for label in row.labels:
        if label != IGNORE:
            stretches[-1].append(label)
        elif stretches[-1]:
            stretches.append([])
    return [tokenizer.decode(each).strip() for each in stretches if each]


@every_template
@pytest.mark.parametrize("image", [True, False])
def test_the_answers_and_their_ends_are_the_targets(name: str, image: bool) -> None:
    tokenizer = TOKENIZERS[name]
    row = rows(name).training(TALK, image=image)
    assert row.ids[:3] == ([BOS, SLOT, SLOT] if image else [BOS, *row.ids[1:3]])
    assert row.ids.count(BOS) == 1 and row.ids.count(SLOT) == 2 * image
    assert tokenizer.bos_token_id is None or row.ids[1] != tokenizer.bos_token_id
    assert not row.cut and len(row.ids) == len(row.labels)
    assert all(label in (IGNORE, i) for i, label in zip(row.ids, row.labels, strict=True))
    end = tokenizer.eos_token
    texts = [text.removesuffix(end).strip() for text in said(tokenizer, row)]
    assert texts == [each.answer for each in TALK.exchanges]
    assert all(text.endswith(end) for text in said(tokenizer, row))


@every_template
def test_a_long_conversation_ends_with_an_earlier_answer(name: str) -> None:
    """At every length: whole exchanges, an end behind each; below the first, part of its answer."""
    tokenizer, whole = TOKENIZERS[name], rows(name).training(TALK, image=True)
    ends = [i + 1 for i, label in enumerate(whole.labels) if label == tokenizer.eos_token_id]
    assert len(ends) == 3 and ends[-1] == len(whole.ids)
    first = whole.labels.index(next(each for each in whole.labels if each != IGNORE))
    for length in range(1, len(whole.ids) + 1):
        if length <= first:
            with pytest.raises(ContentFault, match="question too long"):
                rows(name, length).training(TALK, image=True)
            continue
        row = rows(name, length).training(TALK, image=True)
        kept = max((end for end in ends if end <= length), default=length)
        assert row.ids == whole.ids[:kept] and row.labels == whole.labels[:kept]
        assert row.cut == (length < len(whole.ids))
        assert (row.labels[-1] == tokenizer.eos_token_id) == (kept in ends)


@every_template
def test_generation_starts_from_what_was_trained(name: str) -> None:
    prompt = rows(name).prompt(TALK, image=True)
    row = rows(name).training(TALK, image=True)
    assert row.ids[: len(prompt.ids)] == prompt.ids and not prompt.cut
    assert set(prompt.labels) == {IGNORE}
    assert row.labels[len(prompt.ids) :] == row.ids[len(prompt.ids) :]
    assert prompt == rows(name).prompt(TALK.open, image=True)


@every_template
def test_a_long_history_is_forgotten_from_its_beginning(name: str) -> None:
    shorter = [replace(TALK, exchanges=TALK.exchanges[i:]) for i in range(3)]
    whole = [rows(name).prompt(each, image=True).ids for each in shorter]
    for length in range(len(whole[2]) + 1, len(whole[0]) + 2):
        prompt = rows(name, length).prompt(TALK, image=True)
        assert prompt.ids == next(ids for ids in whole if len(ids) < length)
        assert prompt.cut == (length <= len(whole[0]))
    with pytest.raises(ContentFault, match="question too long"):
        rows(name, len(whole[2])).prompt(TALK, image=True)


@every_template
@given(question=st.text(st.sampled_from("aBe9.\n _é漢"), min_size=1, max_size=40).filter(str.strip))
@settings(max_examples=40, deadline=None)
def test_yes_and_no_are_compared_where_their_tokens_part(name: str, question: str) -> None:
    """What is compared is what training on either answer would put there."""
    made = rows(name)
    compared = made.options(question, OPTIONS, image=True)
    trained = [
        made.training(Conversation.asking(question, each), image=True).ids for each in OPTIONS
    ]
    assert trained[0] != trained[1]
    if compared[0].options:
        (row,) = compared
        (place,) = [i for i, label in enumerate(row.labels) if label != IGNORE]
        assert place == len(row.ids) - 1
        for ids, option in zip(trained, row.options, strict=True):
            assert ids[: place + 1] == [*row.ids[:place], option]
    else:
        for ids, row in zip(trained, compared, strict=True):
            assert ids[: len(row.ids)] == row.ids and any(label != IGNORE for label in row.labels)


@every_template
def test_both_questions_of_an_image_become_rows_in_order(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    raw = RawRecord("count-1", b"png", {**ASKED, "captions": ["a", "b"]}, "shard")
    learnt = MMERows(rows(name), "training")(raw, ())
    texts = [text for row in learnt for text in said(tokenizer, row)]
    assert [text.removesuffix(tokenizer.eos_token).strip() for text in texts] == ["Yes", "No"]
    asked = MMERows(rows(name), "asking")(raw, ())
    for row, prompt in zip(learnt, asked, strict=True):
        assert row.ids[: len(prompt.ids)] == prompt.ids
    scored = MMERows(rows(name), "scoring")(raw, ())
    assert len(scored) == (2 if scored[0].options else 4)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"subtask": "count", "questions": []},
        {"subtask": "count", "questions": [{"question": "Is it?", "answer": "Maybe"}]},
        {"questions": ASKED["questions"]},
    ],
)
def test_what_holds_no_questions_is_a_fault(data: dict[str, object]) -> None:
    with pytest.raises(ContentFault, match="no MME questions"):
        questions_of(data)


def test_captions_can_be_mixed_in_as_answers() -> None:
    make = InstructRows(rows("byte level"), "Describe this image.")
    raw = RawRecord("1", b"png", {"captions": ["a dog", "a cat"]}, "shard")
    learnt = make(raw, ("a dog", " a cat"))
    tokenizer = TOKENIZERS["byte level"]
    assert [said(tokenizer, row) for row in learnt] == [["a dog<eos>"], ["a cat<eos>"]]
    (asked,) = replace(make, asks=True)(raw, ("a dog", "a cat"))
    text = tokenizer.decode(asked.ids[3:])
    assert text == "Instruction: Describe this image.\nResponse:"
    with pytest.raises(ContentFault, match="no conversation"):
        make(replace(raw, image=None), ("a dog",))


@pytest.mark.parametrize(
    "messages",
    [
        "Hello?",
        [{"role": "user"}],
        [{"role": "user", "content": "Hello?"}],
        [{"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Hello?"}],
        [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": 3}],
    ],
)
def test_what_is_no_conversation_is_a_fault(messages: object) -> None:
    with pytest.raises(ContentFault, match="no conversation"):
        Conversation.of({"messages": messages})


def test_a_conversation_is_read_as_it_was_written() -> None:
    talk = replace(TALK, system="Be brief.")
    assert Conversation.of({"messages": talk.messages()}) == talk
