"""The comparison of two run directories: complete, partly missing, damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.evaluation.compare import compare
from tests.helpers import REPOSITORY


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def summary(phase: str, start: dict[str, float], end: dict[str, float]) -> dict[str, Any]:
    return {
        "state": "finished",
        "phase": phase,
        "steps": 1200,
        "records_seen": 2000,
        "records_skipped": {},
        "seconds": 61.4,
        "trained_parameters": 1234567,
        "validation": {"start": start, "end": end},
        "train_loss_end": 1.0,
    }


def metrics(loss: float, cider: float, retrieval: dict[str, float] | None) -> dict[str, Any]:
    scores = {"Bleu_1": 0.7, "Bleu_4": 0.3, "METEOR": 0.25, "ROUGE_L": 0.5, "CIDEr": cider}
    return {"split": "test", "records": 200, "scores": scores, "loss": loss, "retrieval": retrieval}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A finished EIM run and its finished baseline."""
    eim, base = tmp_path / "quick", tmp_path / "quick-baseline"
    write(eim / "encoder_adapt/summary.json", summary("encoder_adapt", {"r1": 0.1}, {"r1": 0.4}))
    write(eim / "st_align/summary.json", summary("st_align", {"loss": 5.0}, {"loss": 2.5}))
    write(eim / "llm_tune/summary.json", summary("llm_tune", {"loss": 2.5}, {"loss": 1.5}))
    write(base / "llm_tune/summary.json", summary("llm_tune", {"loss": 6.0}, {"loss": 2.0}))
    write(eim / "evaluate/test/metrics.json", metrics(1.5, 0.9, {"i2t_r1": 0.4, "t2i_r1": 0.3}))
    write(base / "evaluate/test/metrics.json", metrics(2.0, 1.1, None))
    return tmp_path


def row(text: str, name: str) -> list[str]:
    """The cells of a table row."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{name}  ")]
    return line.strip().removeprefix(name).split()


def test_a_complete_comparison(runs: Path) -> None:
    text = compare(runs, "quick", "quick-baseline")
    assert row(text, "test loss") == ["2.0000", "1.5000", "-0.5000"]
    assert row(text, "CIDEr") == ["1.1000", "0.9000", "-0.2000"]
    assert row(text, "METEOR") == ["0.2500", "0.2500", "+0.0000"]
    assert row(text, "Bleu_1") == ["0.7000", "0.7000", "+0.0000"]
    assert row(text, "i2t_r1") == ["-", "0.4000", "-"]
    assert row(text, "records seen") == ["2,000", "6,000", "+4,000"]
    assert "records: baseline 200, EIM 200" in text
    assert "st_align (finished): 1,234,567 parameters trained, 1,200 steps, 2,000 records" in text
    assert "    loss: 5.0000 -> 2.5000" in text
    assert f"tensorboard --logdir {runs}" in text
    assert "our reading" in text
    assert "What is missing" not in text


def test_missing_pieces_are_dashes_with_their_command(runs: Path) -> None:
    (runs / "quick/st_align/summary.json").unlink()
    (runs / "quick/config.yaml").write_text("recipe: clipcap_coco\nname: quick\n")
    text = compare(runs, "quick", "nowhere")
    assert row(text, "test loss") == ["-", "1.5000", "-"]
    assert row(text, "records seen") == ["-", "4,000", "-"]
    assert "  st_align: -" in text
    selection = "recipe=clipcap_coco name=quick"
    assert f"EIM, st_align: deepspeed stages/st_align.py {selection}" in text
    assert f"baseline, llm_tune: deepspeed stages/llm_tune.py {selection} baseline=true" in text
    assert f"baseline, test split: deepspeed stages/evaluate.py {selection} baseline=true" in text


def test_nothing_at_all_still_tells_the_way(tmp_path: Path) -> None:
    text = compare(tmp_path, "quick", "base")
    assert row(text, "CIDEr") == ["-", "-", "-"]
    assert row(text, "retrieval recall") == ["-", "-", "-"]
    assert "EIM, encoder_adapt: deepspeed stages/encoder_adapt.py" in text


def test_a_disabled_phase_is_not_missing(runs: Path) -> None:
    (runs / "quick/st_align/summary.json").unlink()
    (runs / "quick/config.yaml").write_text("st_align: {enabled: false}\n")
    assert "What is missing" not in compare(runs, "quick", "quick-baseline")


def test_every_split_is_shown(runs: Path) -> None:
    write(runs / "quick/evaluate/val/metrics.json", metrics(1.25, 0.8, None))
    text = compare(runs, "quick", "quick-baseline")
    assert row(text, "val loss") == ["-", "1.2500", "-"]
    assert "deepspeed stages/evaluate.py evaluate.split=val baseline=true" in text


def test_a_summary_without_validation(runs: Path) -> None:
    write(runs / "quick/st_align/summary.json", {"state": "stopped", "steps": 5})
    text = compare(runs, "quick", "quick-baseline")
    assert "st_align (stopped): - parameters trained, 5 steps, - records, - s" in text
    assert "    validation: -" in text


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_is_named(runs: Path, content: str) -> None:
    path = runs / "quick/llm_tune/summary.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"llm_tune/summary\.json .*delete it"):
        compare(runs, "quick", "quick-baseline")


GROUPS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg")
WAY = "the likeliest option; QCM-A in lavin's words"


def answered(average: float, *, way: str = WAY, records: int = 10, unparsed: int = 0) -> Any:
    accuracy = {name: None if name == "NO" else average for name in GROUPS}
    benchmark = {
        "accuracy": accuracy,
        "unparsed": unparsed,
        "unanswered": 1,
        "missing": {"subject": 0, "grade": 2},
    }
    scores = {name: value for name, value in accuracy.items() if value is not None}
    made = {"records": records, "loss": 1.0, "answers": way, "benchmark": benchmark}
    return {**made, "split": "test", "scores": scores}


def test_answers_are_compared_by_the_benchmarks_groups(runs: Path) -> None:
    write(runs / "quick/evaluate/test/metrics.json", answered(60.0, unparsed=3))
    write(runs / "quick-baseline/evaluate/test/metrics.json", answered(52.5))
    text = compare(runs, "quick", "quick-baseline")
    for name in GROUPS:
        numbers = ["-", "-", "-"] if name == "NO" else ["52.50", "60.00", "+7.50"]
        assert row(text, name) == numbers
    assert [text.index(f"\n  {name}") for name in GROUPS] == sorted(
        text.index(f"\n  {name}") for name in GROUPS
    )
    assert row(text, "questions") == ["10", "10", "+0"]
    assert row(text, "unparsed (wrong)") == ["0", "3", "+3"]
    assert row(text, "unanswered (wrong)") == ["1", "1", "+0"]
    assert row(text, "grade unknown") == ["2", "2", "+0"]
    assert f"\n  answered: {WAY}\n" in text
    assert "NOT COMPARABLE" not in text and "CIDEr" not in text and "retrieval" not in text


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"way": "generated, greedy"}, "answered in different ways"),
        ({"records": 9}, "not asked the same questions"),
    ],
)
def test_answers_that_cannot_be_compared_are_flagged(
    runs: Path, other: dict[str, Any], message: str
) -> None:
    write(runs / "quick/evaluate/test/metrics.json", answered(60.0))
    write(runs / "quick-baseline/evaluate/test/metrics.json", answered(52.5, **other))
    text = compare(runs, "quick", "quick-baseline")
    assert f"NOT COMPARABLE: the two were {message}" in text
    if "way" in other:
        assert f"answered, baseline: {other['way']}" in text and f"answered, EIM: {WAY}" in text


def test_one_run_alone_is_shown_with_dashes_for_the_other(runs: Path) -> None:
    write(runs / "quick/evaluate/test/metrics.json", answered(60.0))
    (runs / "quick-baseline/evaluate/test/metrics.json").unlink()
    text = compare(runs, "quick", "quick-baseline")
    assert row(text, "Avg") == ["-", "60.00", "-"]
    assert f"answered: {WAY}" in text and "NOT COMPARABLE" not in text


def test_a_reader_that_has_seen_enough_is_no_error(runs: Path) -> None:
    """As `stages/report.py | head`: the reader is gone before the first line is written."""
    command = [sys.executable, "stages/report.py", f"runs={runs}", "name=quick"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as report:
        assert report.stdout is not None and report.stderr is not None
        report.stdout.close()
        assert report.stderr.read() == ""
    assert report.returncode == 0


def test_scores_on_another_task_are_compared_and_their_command_is_named(runs: Path) -> None:
    scores = {"Perception": 900.0, "Cognition": 240.0, "OCR": 100.0}
    found = {"split": "test", "records": 21, "scores": scores, "loss": 2.0}
    write(runs / "quick" / "evaluate" / "mme-test" / "metrics.json", found)
    text = compare(runs, "quick", "quick-baseline")
    assert row(text, "Perception") == ["-", "900.0000", "-"]
    (title,) = [line for line in text.splitlines() if "mme-test split" in line and "Scores" in line]
    table = text[text.index(title) :].split("\n\n")[0]
    assert "CIDEr" not in table and "recall" not in table
    assert "stages/evaluate.py task=mme baseline=true" in text
