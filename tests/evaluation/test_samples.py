"""Samples of an evaluation: as they were written, and their means are the run's scores."""

from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.evaluation.mme import Answer, score, worth
from pipeline.evaluation.samples import (
    Sample,
    counts_of,
    read_samples,
    strata,
    worst_first,
    write_samples,
)


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    first = Sample("a", "a dog\nno\u2028end", ("ein Hünd", "two"), {"CIDEr": 0.5, "ROUGE_L": 0.1})
    second = Sample("b", "", ("x",), {"Avg": 0.0, "TXT": 0.0}, "What?", ("TXT",))
    third = Sample("c", "", ("x",), {}, counts={"METEOR": (1.5, 2.0), "Bleu": (3, 4)})
    write_samples(tmp_path, [first, second, third])
    assert read_samples(tmp_path) == [first, second, third]
    assert counts_of([first, third], "METEOR") == {"c": (1.5, 2.0)}
    assert (first.score, second.score) == (0.5, 0.0)
    assert worst_first([first, second]) == [second, first]


def test_samples_of_before_there_were_counts_can_be_read(tmp_path: Path) -> None:
    line = '{"key": "a", "predicted": "x", "truth": ["y"], "scores": {"CIDEr": 0.5}}'
    (tmp_path / "samples.jsonl").write_text(line)
    assert read_samples(tmp_path) == [Sample("a", "x", ("y",), {"CIDEr": 0.5})]


def test_no_file_is_no_sample_and_a_damaged_line_is_named(tmp_path: Path) -> None:
    assert read_samples(tmp_path) == []
    (tmp_path / "samples.jsonl").write_text('{"key": "a"}\n')
    with pytest.raises(DataError, match=r"samples\.jsonl: line 1 is no sample"):
        read_samples(tmp_path)


def test_sums_of_mme_are_added_up_from_the_means_of_subtasks() -> None:
    said = {"existence": [("Yes", "no"), ("Yes", "Yes")], "OCR": [("maybe", "No")]}
    answers = {
        name: [
            Answer(f"{i}", f"q{j}", truth, text)
            for i, pair in enumerate(pairs)
            for j, (truth, text) in enumerate(zip(("Yes", "No"), pair, strict=True))
        ]
        for name, pairs in said.items()
    }
    samples = [
        Sample(f"{name}-{i}", "", (), {name: worth([("Yes", a), ("No", b)])}, "", (name,))
        for name, pairs in said.items()
        for i, (a, b) in enumerate(pairs)
    ]
    for name, value in score(answers).numbers().items():
        found = strata(samples, name)
        means = (sum(each.values()) / len(each) for each in found)
        assert sum(means) == pytest.approx(value), name
    assert len(strata(samples, "Perception")) == 2
    assert strata(samples, "Bleu_4") == []
