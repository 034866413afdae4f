"""MME's scores: the benchmark's rules, its result files, and the numbers stored for LaVIN-13B."""

import json
import random
from itertools import chain, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.evaluation.mme import (
    COGNITION,
    PERCEPTION,
    QUESTIONS,
    SUBTASKS,
    Answer,
    parse_answer,
    score,
)
from pipeline.evaluation.mme_files import read_results, write_results
from tests.helpers import require_shared


def answers(*texts: str, image: str = "a.jpg") -> list[Answer]:
    """To an image's questions, of which every second is rightly answered with no."""
    return [
        Answer(image, f"Is it {i}? Please answer yes or no.", "No" if i % 2 else "Yes", text)
        for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Yes", "yes"),
        ("yes, there is a train in the picture.", "yes"),
        ("NO.", "no"),
        (" yes", "yes"),
        ("  yes", "other"),  # spaces take their part of the four characters
        ("I know", "other"),
        ("know", "no"),
        ("Not at all", "no"),
        ("eyes", "yes"),
        ("The answer is yes", "other"),
        ("", "other"),
    ],
)
def test_an_answer_is_read_as_the_benchmark_reads_it(text: str, label: str) -> None:
    assert parse_answer(text) == label


def test_accuracy_counts_questions_and_accuracy_plus_images() -> None:
    right, half = answers("yes", "no"), answers("yes", "yes", image="b.jpg")
    (subtask,) = score({"count": [*right, *half]}).subtasks.values()
    assert (subtask.accuracy, subtask.accuracy_plus, subtask.score) == (75.0, 50.0, 125.0)
    assert [subtask.share(label) for label in ("yes", "no", "other")] == [75.0, 25.0, 0.0]
    assert subtask.yes_bias == 25.0 and subtask.false_yes_share == 100.0


def test_who_always_says_yes_gets_half_and_no_pair() -> None:
    (subtask,) = score({"OCR": answers(*["yes"] * 8)}).subtasks.values()
    assert (subtask.score, subtask.yes_bias, subtask.images) == (50.0, 50.0, 4)


def test_a_question_that_is_left_over_never_makes_a_pair_right_and_is_reported() -> None:
    scores = score({"color": [*answers("yes", "no", "yes"), *answers("yes", "no", image="b.jpg")]})
    subtask = scores.subtasks["color"]
    assert (subtask.questions, subtask.images, subtask.both, subtask.unpaired) == (5, 3, 2, 1)
    assert subtask.accuracy == 100.0
    assert "1 questions are left over" in scores.table()


def test_a_part_of_the_benchmark_is_seen_to_be_one() -> None:
    scores = score({"count": answers("yes", "no"), "mine": answers("yes", "no")})
    assert scores.partial["count"] == (2, 60) and scores.partial["OCR"] == (0, 40)
    assert scores.perception == 200.0 and scores.cognition == 0.0
    assert list(scores.numbers()) == ["Perception", "Cognition", "count", "mine"]
    assert "not the whole benchmark" in scores.table() and "count 2 of 60" in scores.table()
    whole = {name: answers(*["no"] * count) for name, count in QUESTIONS.items()}
    assert score(whole).partial == {} and "not the whole" not in score(whole).table()
    assert sum(QUESTIONS.values()) == 2374 and set(QUESTIONS) == set(SUBTASKS)


def test_of_no_answers_there_is_a_table_too() -> None:
    assert score({}).total is None and "Perception" in score({}).table()


@given(st.lists(st.sampled_from(["yes", "no", "perhaps"]), min_size=2, max_size=40), st.integers())
def test_the_order_of_images_does_not_matter(texts: list[str], seed: int) -> None:
    pairs = [answers(a, b, image=f"{i}.jpg") for i, (a, b) in enumerate(pairwise(texts))]
    shuffled = random.Random(seed).sample(pairs, len(pairs))
    ours, theirs = (score({"scene": list(chain(*order))}) for order in (pairs, shuffled))
    assert ours == theirs
    total = ours.total
    assert total is not None and sum(total.said.values()) == total.questions


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    kept = {"count": answers("yes", "no"), "OCR": answers("", "no, it is not")}
    write_results(tmp_path, kept)
    assert read_results(tmp_path) == kept
    assert sorted(each.name for each in tmp_path.iterdir()) == ["OCR.txt", "count.txt"]
    write_results(tmp_path, {"count": answers("yes,\n it\tis", "no")})
    assert list(read_results(tmp_path)) == ["count"]  # the other was another model's
    first, _ = (tmp_path / "count.txt").read_text().splitlines()
    assert first.split("\t") == ["a.jpg", "Is it 0? Please answer yes or no.", "Yes", "yes, it is"]


@pytest.mark.parametrize(
    "line", ["a.jpg\tIs it?\tYes", "a.jpg\tIs it?\tMaybe\tyes", "a.jpg\tIs it?\tNo\tno\tno"]
)
def test_a_line_that_is_no_answer_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "count.txt").write_text(f"a.jpg\tIs it?\tYes\tyes\n\n{line}\n")
    with pytest.raises(DataError, match=r"count\.txt: line 3 is no answer of MME"):
        read_results(tmp_path)


def test_anybodys_results_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """It is no part of the first image's name, which the second line has too."""
    write_results(tmp_path, {"count": answers("yes", "no")})
    file = tmp_path / "count.txt"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    file.with_name("._count.txt").write_bytes(b"\0\5\x16\7\xff")
    read = read_results(tmp_path)
    assert list(read) == ["count"] and score(read).subtasks["count"].accuracy_plus == 100


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no result files"):
        read_results(tmp_path)


@pytest.mark.shared
def test_lavin_13b_gets_its_published_score_from_its_own_answers(tmp_path: Path) -> None:
    mme = require_shared("data", "mme")
    expected = json.loads((mme / "expected.json").read_text())["LaVIN_13B_recomputed"]
    stored = read_results(mme / "eval_tool" / "LaVIN")
    scores = score(stored)
    assert scores.numbers() == pytest.approx(expected, abs=1e-9)
    assert f"{scores.perception:.2f} {scores.cognition:.2f}" == "963.61 249.64"
    assert scores.partial == {} and scores.total is not None
    position = scores.subtasks["position"]
    assert position.said["yes"] == 56 and position.questions == 60
    assert set(scores.subtasks) == {*PERCEPTION, *COGNITION}
    write_results(tmp_path, stored)
    assert score(read_results(tmp_path)) == scores
