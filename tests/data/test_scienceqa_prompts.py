"""ScienceQA problems in words: the benchmark's formats, and the faults that are not repeated."""

import hashlib
import json
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.faults import ContentFault
from pipeline.data.scienceqa_prompts import INPUTS, OUTPUTS, WORDINGS, Problem, PromptFormat
from pipeline.errors import ConfigError
from tests.data.questions import problem
from tests.helpers import require_shared

# The start of the SHA-256 of the prompts of problems_first1773_fullmeta.json's problems that have a
# lecture and a solution: as ScienceQA's own functions give them, and in LaVIN's wording as it was
# read off its code.
REFERENCE = [
    ("QCM-A", "scienceqa", "7d0816f1ee4fe7a2"),
    ("QCM-ALE", "scienceqa", "712fb59201aa4629"),
    ("QCLEM-A", "scienceqa", "264349b1689eb15b"),
    ("CQM-ELA", "scienceqa", "3250321780664957"),
    ("QCM-ALE", "lavin", "5efa446d9b3b6e25"),
]

ASKED = Problem(
    question="Who?",
    choices=("him", "her"),
    answer=1,
    hint="A hint.",
    lecture="Look.\nThen think.",
    solution="It is her.",
    caption="two people",
)
texts = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=12)
problems = st.builds(
    Problem,
    question=texts.filter(bool),
    choices=st.lists(texts, min_size=2, max_size=5).map(tuple),
    answer=st.integers(0, 1),
    hint=texts,
    lecture=texts,
    solution=texts,
    caption=texts,
)
formats = st.builds(PromptFormat, st.sampled_from(INPUTS), st.sampled_from(OUTPUTS))


def both(name: str, asked: Problem = ASKED, **options) -> tuple[str, str]:
    example = PromptFormat.parse(name, **options).example(asked)
    return example.prompt_text, example.target_text


def test_the_benchmarks_own_form() -> None:
    assert both("QCM-ALE") == (
        "Question: Who?\nContext: A hint.\nOptions: (A) him (B) her\nAnswer:",
        " The answer is B. BECAUSE: Look.\\nThen think. It is her.",
    )


def test_lavins_form_has_no_space_before_the_answer() -> None:
    assert both("QCM-ALE", wording="lavin") == (
        "Question: Who?\nContext: A hint.\nOptions: (A) him (B) her\nResponse:",
        "The answer is B. BECAUSE: Look.\\nThen think. It is her.",
    )


@pytest.mark.parametrize(
    ("outputs", "target"),
    [
        ("A", "The answer is B."),
        ("AL", "The answer is B. BECAUSE: Look.\\nThen think."),
        ("AE", "The answer is B. BECAUSE: It is her."),
        ("ALE", "The answer is B. BECAUSE: Look.\\nThen think. It is her."),
        ("AEL", "The answer is B. BECAUSE: It is her. Look.\\nThen think."),
        ("LA", "Look.\\nThen think. The answer is B."),
        ("EA", "It is her. The answer is B."),
        ("LEA", "Look.\\nThen think. It is her. The answer is B."),
        ("ELA", "It is her. Look.\\nThen think. The answer is B."),
    ],
)
def test_outputs(outputs: str, target: str) -> None:
    assert both(f"QCM-{outputs}")[1] == f" {target}"


@pytest.mark.parametrize(
    ("inputs", "lines"),
    [
        ("QCM", "QCM"),
        ("CQM", "CQM"),
        ("QCML", "QCML"),
        ("QCME", "QCME"),
        ("QCMLE", "QCMB"),
        ("QCLM", "QCLM"),
        ("QCEM", "QCEM"),
        ("QCLEM", "QCBM"),
    ],
)
def test_inputs(inputs: str, lines: str) -> None:
    text = {
        "Q": "Question: Who?\n",
        "C": "Context: A hint.\n",
        "M": "Options: (A) him (B) her\n",
        "L": "BECAUSE: Look.\\nThen think.\n",
        "E": "BECAUSE: It is her.\n",
        "B": "BECAUSE: Look.\\nThen think. It is her.\n",
    }
    assert both(f"{inputs}-A")[0] == "".join(text[line] for line in lines) + "Answer:"


def test_the_context_is_the_hint_and_if_wanted_the_caption() -> None:
    def context(asked: Problem, *, with_caption: bool) -> str:
        prompt, _ = both("QCM-A", asked, with_caption=with_caption)
        return prompt.split("Context: ")[1].split("\nOptions")[0]

    assert context(ASKED, with_caption=True) == "A hint. two people"
    assert context(ASKED, with_caption=False) == "A hint."
    assert context(replace(ASKED, hint=""), with_caption=True) == "two people"
    assert context(replace(ASKED, hint=""), with_caption=False) == "N/A"


@pytest.mark.parametrize("name", [f"{i}-{o}" for i, o in product(INPUTS, OUTPUTS)])
def test_nothing_to_explain_leaves_no_because(name: str) -> None:
    for wording in WORDINGS:
        prompt, target = both(name, replace(ASKED, lecture="", solution=" \n"), wording=wording)
        assert "BECAUSE" not in prompt + target
        assert target.strip() == "The answer is B."
        assert "  " not in prompt + target


@given(problems, formats)
@settings(deadline=None)
def test_pieces_name_what_they_hold(asked: Problem, form: PromptFormat) -> None:
    example = form.example(asked)
    texts = {piece.part: piece.text for piece in (*example.prompt, *example.target)}
    assert asked.question in texts["question"] and asked.hint in texts["context"]
    assert all(choice in texts["choices"] for choice in asked.choices)
    assert f"The answer is {'AB'[asked.answer]}." in texts["answer"]
    for letter, part in (("L", "lecture"), ("E", "solution")):
        shown = letter in form.inputs + form.outputs and getattr(asked, part).strip()
        assert (part in texts) == bool(shown)
        assert not shown or getattr(asked, part) in texts[part]
    assert example.prompt[-1].part == "cue"


def test_the_prompt_never_tells_the_answer() -> None:
    for inputs in INPUTS:
        form = PromptFormat.parse(f"{inputs}-ALE")
        assert form.example(ASKED).prompt == form.example(replace(ASKED, answer=0)).prompt


@pytest.mark.parametrize("name", ["QCM", "QCM-", "MCQ-A", "QCM-LE", "qcm-a", "QCM-A-A"])
def test_unknown_formats_are_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match=r"QCLEM, a dash, and one of A, AL, AE"):
        PromptFormat.parse(name)
    with pytest.raises(ConfigError, match="scienceqa, lavin"):
        PromptFormat.parse("QCM-A", wording="llava")


def test_a_record_is_a_problem_or_a_fault() -> None:
    data = problem(caption="a map")
    assert Problem.of(data).choices == tuple(data["choices"])
    for changes in ({"answer": 3}, {"choices": None}, {"hint": 3}, {"choices": ["one"]}):
        with pytest.raises(ContentFault, match="no ScienceQA problem"):
            Problem.of({**data, **changes})


@pytest.mark.shared
@pytest.mark.parametrize(("name", "wording", "expected"), REFERENCE)
def test_the_real_problems_read_as_in_the_references(
    name: str, wording: str, expected: str
) -> None:
    path = require_shared("data", "scienceqa", "problems_first1773_fullmeta.json")
    form = PromptFormat.parse(name, wording=wording)
    digest = hashlib.sha256()
    for asked in map(Problem.of, json.loads(path.read_text()).values()):
        if asked.lecture.strip() and asked.solution.strip():
            example = form.example(asked)
            digest.update(f"{example.prompt_text}{example.target_text}\0".encode())
    assert digest.hexdigest()[:16] == expected
