"""ScienceQA rows: what is a target, what it weighs, what is shortened, and what options share."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from pipeline.data.collate import LanguageCollator, Sample
from pipeline.data.faults import ContentFault
from pipeline.data.prompts import IGNORE, Row
from pipeline.data.scienceqa_prompts import INPUTS, OUTPUTS, Problem, PromptFormat
from pipeline.data.scienceqa_rows import QuestionRows, tokenize
from tests.data.questions import byte_level, problem, sentence_piece
from tests.helpers import require_shared

SLOT, BOS = -1, -2
PARTS = ("hint", "lecture", "solution")
ASKED = Problem.of(problem(hint="The map shows four states of the south and the east."))
TOKENIZERS = {"byte level": byte_level(), "sentence piece": sentence_piece()}

every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
texts = st.text(st.sampled_from("aBe9.\n  _é漢"), max_size=60)
problems = st.builds(
    Problem,
    question=texts,
    choices=st.lists(texts, min_size=2, max_size=5).map(tuple),
    answer=st.integers(0, 1),
    hint=texts,
    lecture=texts,
    solution=texts,
)


def layout(prompt: Sequence[int], image: bool) -> list[int]:
    """As a family may have it: BOS, two image slots where there is an image, the prompt."""
    return [BOS, *([SLOT] * 2 if image else []), *prompt]


def rows(tokenizer: PreTrainedTokenizerFast, name: str = "QCM-ALE", **changes) -> QuestionRows:
    wording = changes.pop("wording", "scienceqa")
    return QuestionRows(tokenizer, PromptFormat.parse(name, wording=wording), layout, **changes)


def targets(row: Row) -> list[int]:
    return [label for label in row.labels if label != IGNORE]


@every_tokenizer
@pytest.mark.parametrize("wording", ["scienceqa", "lavin"])
def test_answer_and_explanation_are_the_targets(
    tokenizer: PreTrainedTokenizerFast, wording: str
) -> None:
    row = rows(tokenizer, wording=wording).training(ASKED, image=True)
    assert row.ids[:3] == [BOS, SLOT, SLOT]
    first = row.labels.index(next(each for each in row.labels if each != IGNORE))
    assert row.labels[first:] == row.ids[first:] and row.ids[-1] == tokenizer.eos_token_id
    assert row.labels[:first] == [IGNORE] * first
    shown = tokenizer.decode(row.ids[3:first]).strip()
    assert shown.startswith("Question: Which") and shown.endswith(("Answer:", "Response:"))
    said = tokenizer.decode(targets(row)[:-1]).strip()
    assert said.startswith("The answer is A. BECAUSE: Maps") and said.endswith("farthest north.")


@every_tokenizer
def test_a_problem_that_writes_the_end_does_not_end_there(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    text = f"It is {tokenizer.eos_token} here."
    made = replace(ASKED, question=text, choices=(text, "no"), hint=text, solution=text)
    own = rows(tokenizer)
    assert own.training(made, image=False).ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.eos_token_id not in own.prompt(made, image=False).ids
    assert tokenizer.eos_token_id not in own.options(made, image=False).row.ids


@every_tokenizer
@given(problem_=problems, image=st.booleans())
@settings(max_examples=40, deadline=None)
def test_generation_starts_from_what_was_trained(
    tokenizer: PreTrainedTokenizerFast, problem_: Problem, image: bool
) -> None:
    """The ids of a row are the prompt's and, behind them, those of the same text continued."""
    for name in ("QCM-ALE", "QCM-LA", "CQM-A"):
        made = rows(tokenizer, name, max_tokens=10_000)
        prompt = made.prompt(problem_, image=image)
        row = made.training(problem_, image=image)
        assert row.ids == [*prompt.ids, *targets(row)]
        assert set(prompt.labels) == {IGNORE} and len(prompt.labels) == len(prompt.ids)
        example = made.form.example(problem_)
        tokens = tokenize(tokenizer, example)
        assert tokens.target_ids == targets(row)[:-1]
        whole = tokenizer.encode(
            example.prompt_text + example.target_text, add_special_tokens=False
        )
        assert layout(whole, image) == row.ids[:-1]


@every_tokenizer
@pytest.mark.parametrize("name", ["QCM-ALE", "QCM-LEA", "QCM-A"])
def test_the_weight_lies_on_the_answer(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    row = rows(tokenizer, name, answer_weight=5.0).training(ASKED, image=False)
    assert row.weights is not None and len(row.weights) == len(row.ids)
    heavy = [i for i, weight in zip(row.ids, row.weights, strict=True) if weight == 5.0]
    assert tokenizer.decode(heavy).strip() == "The answer is A."
    for label, weight in zip(row.labels, row.weights, strict=True):
        assert (label == IGNORE) == (weight == 0.0)
    assert row.weights[-1] == 1.0  # EOS


def test_weights_reach_the_batch() -> None:
    made = rows(TOKENIZERS["byte level"], answer_weight=5.0)
    by_text = {"a": made.training(ASKED, image=False), "b": Row([1, 2, 3], [IGNORE, 2, 3])}
    collate = LanguageCollator((3, 2, 2), pad_id=0, dummy=by_text["b"])
    batch = collate([Sample("1", 0, (), None, tuple(by_text.values()))])
    length = len(by_text["a"].ids)
    assert batch.weights[0].tolist() == by_text["a"].weights
    assert batch.weights[1].tolist() == [0.0, 1.0, 1.0] + [0.0] * (length - 3)


@every_tokenizer
def test_hint_then_lecture_then_solution_are_shortened(tokenizer: PreTrainedTokenizerFast) -> None:
    """Down from the whole row to the shortest: words go from the end, part after part."""
    parts = {name: " ".join(f"{name[0]}{i}" for i in range(9)) for name in PARTS}
    asked = replace(ASKED, **parts)
    whole = rows(tokenizer).training(asked, image=True)
    bare = replace(asked, hint="", lecture="", solution="")
    shortest = len(rows(tokenizer).training(bare, image=True).ids)
    seen = []
    for limit in range(len(whole.ids), shortest - 1, -1):
        row = rows(tokenizer, max_tokens=limit).training(asked, image=True)
        text = tokenizer.decode(row.ids[3:-1])
        assert len(row.ids) <= limit and row.cut == (limit < len(whole.ids))
        assert ASKED.question in text and "(A) West Virginia (B) Louisiana (C) Arizona" in text
        assert "The answer is A." in text and row.ids[-1] == tokenizer.eos_token_id
        words = {name: re.findall(rf"\b{name[0]}\d", text) for name in PARTS}
        assert all(words[name] == parts[name].split()[: len(words[name])] for name in PARTS)
        seen.append(tuple(len(words[name]) for name in PARTS))
    assert seen == sorted(seen, reverse=True)
    assert (seen[0], seen[-1]) == ((9, 9, 9), (0, 0, 0))
    for hint, lecture, solution in seen:
        assert (lecture == 9 or not hint) and (solution == 9 or not lecture)
    with pytest.raises(ContentFault, match="question too long"):
        rows(tokenizer, max_tokens=shortest - 1).training(asked, image=True)


@given(
    problem_=problems,
    name=st.sampled_from([f"{i}-{o}" for i in INPUTS for o in OUTPUTS]),
    limit=st.integers(1, 300),
    image=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_no_row_is_longer_than_allowed_nor_shortened_without_need(
    problem_: Problem, name: str, limit: int, image: bool
) -> None:
    tokenizer = TOKENIZERS["byte level"]
    whole = rows(tokenizer, name, max_tokens=100_000).training(problem_, image=image)
    bare = replace(problem_, hint="", lecture="", solution="")
    least = rows(tokenizer, name, max_tokens=100_000).training(bare, image=image)
    made = rows(tokenizer, name, max_tokens=limit)
    if min(len(whole.ids), len(least.ids)) > limit:
        with pytest.raises(ContentFault, match="question too long"):
            made.training(problem_, image=image)
        return
    row = made.training(problem_, image=image)
    assert len(row.ids) <= limit
    assert row.cut == (len(whole.ids) > limit)
    assert row.cut or row == whole


@every_tokenizer
@pytest.mark.parametrize("wording", ["scienceqa", "lavin"])
def test_options_differ_in_their_letter_alone(
    tokenizer: PreTrainedTokenizerFast, wording: str
) -> None:
    made = rows(tokenizer, wording=wording)
    found = made.options(ASKED, image=True)
    assert len(found.options) == len(ASKED.choices)
    letters = [tokenizer.decode(list(each)).strip(" .") for each in found.options]
    assert letters == ["A", "B", "C"]
    assert all(len(each) == 1 for each in found.options)
    stem = tokenizer.decode(found.row.ids[3:]).strip()
    assert stem.endswith("The answer is") and set(found.row.labels) == {IGNORE}
    for number in range(3):
        trained = made.training(replace(ASKED, answer=number), image=True)
        asked = [*found.row.ids, *found.options[number]]
        assert trained.ids[: len(asked)] == asked
        assert made.options(replace(ASKED, answer=number), image=True) == found


def test_a_token_that_would_span_prompt_and_answer_is_not_used() -> None:
    """Otherwise the prompt's tokens in training would not be those that generation starts from."""

    class Greedy:
        """One id a character, but one for ":The"."""

        bos_token_id, eos_token_id = None, 0

        def encode(self, text: str, **_: object) -> list[int]:
            return [ord(letter) for letter in text.replace(":The", "\u2042")]

    made = rows(Greedy(), wording="lavin")  # type: ignore[arg-type]
    row, prompt = made.training(ASKED, image=True), made.prompt(ASKED, image=True)
    assert row.ids == [*prompt.ids, *targets(row)] and ord("\u2042") not in row.ids
    assert "".join(map(chr, targets(row)[:-1])).startswith("The answer is A. BECAUSE")
    assert made.options(ASKED, image=True).options == ((65,), (66,), (67,))


def test_options_need_the_answer_first() -> None:
    with pytest.raises(ValueError, match="LEA"):
        rows(TOKENIZERS["byte level"], "QCM-LEA").options(ASKED, image=False)


def test_options_of_a_tokenizer_without_letters() -> None:
    """Where letters are several tokens, what they have in common is part of the row."""

    class Codes:
        """Each character as two ids, high and low."""

        bos_token_id, eos_token_id = None, 999

        def encode(self, text: str, **_: object) -> list[int]:
            return [each for letter in text for each in divmod(ord(letter), 16)]

    found = rows(Codes()).options(ASKED, image=False)  # type: ignore[arg-type]
    assert found.options == ((1,), (2,), (3,))  # A is 4 * 16 + 1
    assert found.row.ids[-1] == 4


def test_at_test_time_the_hint_makes_room_for_an_answer() -> None:
    tokenizer = TOKENIZERS["byte level"]
    made = rows(tokenizer, "QCM-A")
    full = len(made.training(ASKED, image=False).ids)
    tight = replace(made, max_tokens=full - 1)
    assert tight.prompt(ASKED, image=False).cut and tight.options(ASKED, image=False).row.cut
    assert (
        tight.prompt(ASKED, image=False).ids
        == tight.training(ASKED, image=False).ids[: len(tight.prompt(ASKED, image=False).ids)]
    )
    # An explanation costs training some of the hint, but not those who are to answer.
    explained = rows(tokenizer, max_tokens=full)
    assert not explained.prompt(ASKED, image=False).cut
    assert explained.training(ASKED, image=False).cut


@pytest.mark.shared
def test_real_problems_keep_question_choices_and_answer() -> None:
    path = require_shared("data", "scienceqa", "problems_first1773_fullmeta.json")
    made = rows(TOKENIZERS["byte level"], max_tokens=1000)
    counts = {"cut": 0, "whole": 0}
    for data in list(json.loads(path.read_text()).values())[:150]:
        asked = Problem.of(data)
        row = made.training(asked, image=data["image"] is not None)
        text = made.tokenizer.decode([each for each in row.ids if each >= 0])
        assert len(row.ids) <= 1000 and asked.question.replace("  ", " ") in text
        assert f"The answer is {'ABCDE'[asked.answer]}." in text
        counts["cut" if row.cut else "whole"] += 1
    assert all(counts.values())
