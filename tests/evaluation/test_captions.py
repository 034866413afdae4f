"""Caption scores: published numbers reproduced, small corpora by hand, and what must be refused."""

import json
import math
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.evaluation import captions
from pipeline.evaluation.corpus_scores import FORMULAS
from pipeline.evaluation.java import Meteor, ptb_tokenize
from tests.helpers import require_shared, require_system

ALL = ["bleu", "meteor", "rouge_l", "cider"]
REFERENCES = {1: ["a red ball on the grass"], 2: ["two dogs run along a beach"]}
PERFECT = {key: texts[0] for key, texts in REFERENCES.items()}


@pytest.fixture
def java() -> None:
    require_system("java")


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.usefixtures("java")
def test_published_scores_are_reproduced() -> None:
    folder = require_shared("data", "coco", "metrics_truth")
    references: dict[int, list[str]] = defaultdict(list)
    for annotation in json.loads((folder / "A_refs.json").read_text())["annotations"]:
        references[annotation["image_id"]].append(annotation["caption"])
    predictions: dict[int, str] = {}
    for result in json.loads((folder / "A_results.json").read_text()):
        predictions.setdefault(result["image_id"], result["caption"])
    expected = json.loads((folder / "expected.json").read_text())["A"]
    numbers = expected["recomputed_here_pycocoevalcap_1.2_java"]

    scores = captions.score(predictions, references, ALL)

    bleu = {f"Bleu_{n}": value for n, value in enumerate(numbers["Bleu"], start=1)}
    others = {name: numbers[name] for name in ("METEOR", "ROUGE_L", "CIDEr")}
    assert scores == pytest.approx(bleu | others, abs=5e-5)
    quick = captions.quick_cider(predictions, references)
    assert quick == pytest.approx(scores["CIDEr"], abs=0.002)


@pytest.mark.usefixtures("java")
def test_a_perfect_caption_scores_the_maximum(capfd: pytest.CaptureFixture[str]) -> None:
    scores = captions.score(PERFECT, REFERENCES, [*ALL, "quick_cider"])
    assert [scores[f"Bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx([1.0] * 4)
    assert scores["METEOR"] == pytest.approx(1.0)
    assert scores["ROUGE_L"] == pytest.approx(1.0)
    assert scores["CIDEr"] == pytest.approx(10.0)
    assert scores["CIDEr_quick"] == pytest.approx(10.0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("java")
def test_bleu_brevity_penalty() -> None:
    # Every word of the 3-word prediction is right, 3 of 6 are missing: precision 1, exp(1 - 6/3).
    scores = captions.score({1: "a red ball"}, {1: REFERENCES[1]}, ["bleu"])
    assert scores["Bleu_1"] == pytest.approx(math.exp(-1))
    assert scores["Bleu_3"] == pytest.approx(math.exp(-1))
    assert scores["Bleu_4"] < 0.02  # no 4-gram: 0 but for the smoothing constant


@pytest.mark.usefixtures("java")
def test_rouge_l_by_hand() -> None:
    # LCS "a ball" = 2 of 2 predicted and 2 of 6 reference words; F with beta 1.2.
    scores = captions.score({1: "a ball"}, {1: REFERENCES[1]}, ["rouge_l"])
    precision, recall, beta = 1.0, 2 / 6, 1.2
    f_score = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    assert scores == {"ROUGE_L": pytest.approx(f_score)}


def test_cider_by_hand() -> None:
    # Two images, so an n-gram of one image weighs log 2, one of both weighs 0. "a" is in both.
    # Image 1: "a cat" against "a dog": the only weighted n-grams differ -> 0.
    # Image 2: "a fish" against "a fish": unigram cosine 1, bigram cosine 1, no longer n-grams.
    each = captions.score_each({1: "a cat", 2: "a fish"}, {1: ["a dog"], 2: ["a fish"]}, quick=True)
    assert each == pytest.approx({1: 0.0, 2: 10 * 2 / 4})
    # A prediction one word longer: unigrams (fish) still agree, because "a" weighs nothing, and
    # so does its bigram but for the new one, (fish, a): cosine 1/sqrt 2. The trigram is unmatched.
    # pycocoevalcap counts the length in bigrams: one more than the reference's.
    longer = captions.score_each(
        {1: "a cat", 2: "a fish a"}, {1: ["a dog"], 2: ["a fish"]}, quick=True
    )
    penalty = math.exp(-1 / (2 * 6.0**2))
    assert longer[2] == pytest.approx(10 / 4 * (1 + 1 / math.sqrt(2)) * penalty)


def test_quick_cider_is_the_mean_and_one_image_scores_zero() -> None:
    predictions = {1: "a red ball", 2: "two cats"}
    each = captions.score_each(predictions, REFERENCES, quick=True)
    assert captions.quick_cider(predictions, REFERENCES) == pytest.approx(sum(each.values()) / 2)
    assert captions.quick_cider({1: PERFECT[1]}, {1: REFERENCES[1]}) == 0.0


@pytest.mark.usefixtures("java")
def test_score_each_uses_the_ptb_tokens() -> None:
    each = captions.score_each(PERFECT, REFERENCES)
    assert each == pytest.approx({1: 10.0, 2: 10.0})


@pytest.mark.usefixtures("java")
def test_what_each_caption_adds_gives_bleu_and_meteor_of_any_part() -> None:
    """Words, stems, synonyms, paraphrases; one that is its reference; one without words."""
    said = {
        1: PERFECT[1],
        2: "a dog ran along the shore",
        3: "",
        4: "the large automobile is parked in front of big houses",
        5: "a person riding a bike, a bike and a bike",
    }
    true = {
        **REFERENCES,
        3: ["a cat sleeps"],
        4: ["a big car parks in front of a house", "one car"],
        5: ["a man rides on his bicycle down the street", "someone riding a bike"],
    }
    for part in ([1, 2, 3, 4, 5], [4], [1], [3], [2, 5, 4], [1, 4]):
        found = captions.score_all(
            {key: said[key] for key in part}, {key: true[key] for key in part}, ["bleu", "meteor"]
        )
        for name, (counted, formula) in FORMULAS.items():
            sums = np.array([found.counts[counted][key] for key in part], float).sum(0)
            assert float(formula(sums)) == pytest.approx(found.totals[name], abs=1e-12), name


@pytest.mark.usefixtures("java")
def test_empty_predictions_score_nothing_and_do_not_crash() -> None:
    scores = captions.score({1: "", 2: " . "}, REFERENCES, [*ALL, "quick_cider"])
    assert list(scores.values()) == pytest.approx([0.0] * 8, abs=1e-6)


@pytest.mark.usefixtures("java")
def test_one_caption_stays_one_line() -> None:
    lines = ["A man's\nt-shirt.", "", "caf\u00e9\r\u2028\x85bar!", "|||", "\ud800"]
    tokens = ptb_tokenize(lines)
    assert len(tokens) == len(lines)
    assert tokens[:3] == ["a man 's t-shirt", "", "caf\u00e9 bar"]


@pytest.mark.usefixtures("java")
def test_tokens_do_not_depend_on_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "POSIX")
    assert ptb_tokenize(["Caf\u00e9"]) == ["caf\u00e9"]


@pytest.mark.usefixtures("java")
def test_meteor_survives_its_own_separator() -> None:
    references = {1: ["a ||| b ||| c", ""], 2: ["two dogs"]}
    with Meteor() as meteor:
        assert 0 < meteor.score({1: "a |||", 2: "two dogs"}, references) <= 1


@pytest.mark.usefixtures("java")
def test_meteor_is_closed_when_the_work_fails() -> None:
    meteor = Meteor()
    with pytest.raises(KeyError), meteor:
        meteor.score({1: "a dog", 2: "a cat"}, {1: ["a dog"]})
    assert meteor._process.returncode is not None  # ended and reaped


def test_java_that_dies_is_one_line_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "java"
    fake.write_text("#!/bin/sh\necho 'no heap' >&2\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    meteor = Meteor()
    with pytest.raises(ConfigError, match="METEOR failed in Java: no heap: check"), meteor:
        meteor.score(PERFECT, REFERENCES)
    with pytest.raises(ConfigError, match="PTB tokenizer failed in Java: no heap: check"):
        ptb_tokenize(["a dog"])
    assert meteor._process.returncode == 3  # reaped


@pytest.mark.usefixtures("no_java")
def test_without_java_the_remedy_is_named_and_the_quick_score_works() -> None:
    with pytest.raises(ConfigError) as caught:
        captions.score(PERFECT, REFERENCES, ["cider", "quick_cider"])
    message = str(caught.value)
    assert "evaluate.metrics=[cider] needs Java" in message
    assert "evaluate.metrics=[quick_cider]" in message
    assert "\n" not in message
    scores = captions.score(PERFECT, REFERENCES, ["quick_cider"])
    assert scores == pytest.approx({"CIDEr_quick": 10.0})
    assert captions.score(PERFECT, REFERENCES, []) == {}


@pytest.mark.parametrize(
    ("metric", "hint"),
    [("Bleu_4", "did you mean bleu?"), ("CIDEr", "did you mean cider?"), ("xyz", "known are")],
)
def test_unknown_metrics_are_refused_with_the_nearest(metric: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown metric '{metric}'") as caught:
        captions.check_metrics([metric])
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("predictions", "references", "reason"),
    [
        ({1: "a"}, {1: ["a"], 2: ["b"]}, r"1 image\(s\) have no prediction, the first is 2"),
        ({1: "a", 3: "c"}, {1: ["a"]}, r"1 image\(s\) have no references, the first is 3"),
        ({}, {}, "no images"),
        ({1: "a"}, {1: []}, "empty list of references"),
        ({1: "a"}, {1: ["."]}, "no reference has a single word"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(
    predictions: dict[int, str], references: dict[int, list[str]], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        captions.quick_cider(predictions, references)


def test_simple_tokens() -> None:
    text = "A man's T-shirt (red), 'two' dogs... and a \"caf\u00e9\" -- 5!"
    expected = "a man 's t-shirt red two dogs and a caf\u00e9 5"
    assert " ".join(captions.simple_tokenize(text)) == expected
