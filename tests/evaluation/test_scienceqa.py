"""ScienceQA's scores: the benchmark's groups and rules, and the number stored for LLaVA-1.5."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.evaluation.scienceqa import (
    GROUPS,
    UNPARSED,
    groups_of,
    parse_answer,
    read_results,
    score,
    write_results,
)
from tests.helpers import require_shared

UNKNOWN = (None, "", "maths")


def problem(**changes: Any) -> dict[str, Any]:
    values = {"subject": "natural science", "grade": "grade6", "hint": "", "image": None}
    return {"choices": ["a", "b", "c"], "answer": 1, **values, **changes}


problems = st.dictionaries(
    st.integers(1, 999).map(str),
    st.builds(
        problem,
        subject=st.sampled_from(
            ["natural science", "social science", "language science", *UNKNOWN]
        ),
        grade=st.sampled_from([f"grade{i}" for i in range(1, 13)] + list(UNKNOWN)),
        hint=st.sampled_from(["", "A hint."]),
        image=st.sampled_from([None, "image.png"]),
        answer=st.integers(0, 2),
    ),
    min_size=1,
)


def test_a_problem_of_others_without_hint_and_image_is_scored() -> None:
    bare = {"choices": ["a", "b"], "answer": 1, "subject": ["natural science"]}
    scores = score({"1": bare}, {"1": 1})
    assert scores.average.percent == 100 and scores.groups["NO"].count == 1
    assert dict(scores.missing) == {"subject": 1, "grade": 1}


@pytest.mark.parametrize(
    ("changes", "groups"),
    [
        ({}, {"NAT", "NO", "G1-6"}),
        ({"subject": "social science", "grade": "grade7", "hint": "x"}, {"SOC", "TXT", "G7-12"}),
        ({"subject": "language science", "grade": "grade12"}, {"LAN", "NO", "G7-12"}),
        ({"image": "image.png"}, {"NAT", "IMG", "G1-6"}),
        ({"image": "image.png", "hint": "x"}, {"NAT", "IMG", "TXT", "G1-6"}),
        ({"subject": None, "grade": "grade13"}, {"NO"}),
        ({"subject": ["natural science"], "grade": 6}, {"NO"}),
    ],
)
def test_groups_are_the_benchmarks(changes: dict[str, Any], groups: set[str]) -> None:
    assert set(groups_of(problem(**changes))) == groups


def test_what_is_not_known_is_missing_from_groups_but_not_from_the_average() -> None:
    asked = {"1": problem(), "2": problem(subject=None), "3": problem(grade=None, hint="x")}
    found = score(asked, {"1": 1, "2": 1, "3": 0})
    assert found.missing == {"subject": 1, "grade": 1}
    assert (found.average.correct, found.average.count) == (2, 3)
    assert found.groups["NAT"].count == 2 and found.groups["NAT"].percent == 50.0
    assert found.groups["SOC"].percent is None
    table = found.table()
    assert "1 questions of unknown subject" in table and table.splitlines()[1].count("-") == 4
    assert "unknown" not in score({"1": problem()}, {"1": 1}).table()


def test_no_answer_is_a_wrong_answer_and_is_told() -> None:
    asked = {str(i): problem() for i in range(5)}
    found = score(asked, {"0": 1, "1": UNPARSED, "2": 3, "3": 0})
    assert found.average.percent == 20.0
    assert (found.unparsed, found.unanswered) == (2, 1)
    assert "2 answers that are no choice" in found.table()
    with pytest.raises(DataError, match="pid 77 and 0 more are not among the 5 problems"):
        score(asked, {"77": 1})


@given(problems, st.data())
@settings(deadline=None)
def test_groups_add_up(asked: dict[str, dict[str, Any]], data: st.DataObject) -> None:
    predictions = {pid: data.draw(st.integers(-1, 3)) for pid in asked}
    found = score(asked, predictions)
    counts = {name: each.count for name, each in found.groups.items()}
    assert tuple(counts) == GROUPS
    total = found.average.count
    assert counts["NAT"] + counts["SOC"] + counts["LAN"] + found.missing["subject"] == total
    assert counts["G1-6"] + counts["G7-12"] + found.missing["grade"] == total
    both = sum(bool(each["hint"] and each["image"]) for each in asked.values())
    assert counts["TXT"] + counts["IMG"] - both + counts["NO"] == total == len(asked)
    assert found.average.correct == sum(p["answer"] == predictions[k] for k, p in asked.items())
    assert all(0 <= each.correct <= each.count for each in found.groups.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is B.", 1),
        (" The answer is A. BECAUSE: Look at the map.", 0),
        ("Look at the map. The answer is C.", 2),
        ("The answer is B, of course", 1),  # any character stands for the full stop
        ("The answer is B", UNPARSED),
        ("The answer is D.", UNPARSED),  # there are three choices
        ("The answer is A. The answer is B.", UNPARSED),
        ("The answer is A. Yes: The answer is A.", UNPARSED),
        ("the answer is A.", UNPARSED),
        ("The answer is (A).", UNPARSED),
        ("B", UNPARSED),
        ("", UNPARSED),
    ],
)
def test_an_answer_is_read_by_the_benchmarks_rule(text: str, expected: int) -> None:
    assert parse_answer(text, 3) == expected


def test_results_are_written_as_the_benchmark_reads_them(tmp_path: Path) -> None:
    asked = {"4": problem(), "11": problem(answer=0)}
    predictions = {"4": 1, "11": UNPARSED}
    path = tmp_path / "results.json"
    write_results(path, score(asked, predictions), predictions, {"4": "The answer is B."})
    stored = json.loads(path.read_text())
    assert (stored["acc"], stored["correct"], stored["count"]) == (50.0, 1, 2)
    assert stored["outputs"] == {"4": "The answer is B."}
    assert read_results(path) == predictions and list(tmp_path.iterdir()) == [path]
    path.write_text('{"results": {"4": "2"}}')
    assert read_results(path) == {"4": 2}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"results": [1]}', '{"results": {"4": "B"}}'])
def test_what_is_no_results_file_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(DataError, match="not a results file") as caught:
        read_results(path)
    assert "\n" not in str(caught.value)


@pytest.mark.shared
def test_the_stored_results_of_llava_score_as_published() -> None:
    folder = require_shared("data", "scienceqa")
    asked = json.loads((folder / "problems_test.json").read_text())
    found = score(asked, read_results(folder / "reference" / "llava-v1.5-13b_result.json"))
    assert (found.average.correct, found.average.count) == (3155, 4241)
    assert found.average.percent == pytest.approx(74.393, abs=5e-4)
    assert found.groups["IMG"].count == 2017
    assert found.missing == {"subject": 3880, "grade": 3880}
    assert found.unanswered == 0 and found.unparsed > 0
