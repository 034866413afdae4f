"""Several runs side by side: where recipes differ, how phases went, how sure scores are."""

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.comparison import compare_runs, named_runs
from pipeline.evaluation.samples import Sample, write_samples
from tests.helpers import REPOSITORY

EVIL = "<script>alert(1)</script>"


def put(
    folder: Path,
    scores: list[float],
    *,
    lr: float,
    records: int = 0,
    task: str = "captions",
    prefix: str = "k",
    **more: Any,
) -> Path:
    """A run that has finished llm_tune and was scored on the test split."""
    (folder / "llm_tune").mkdir(parents=True)
    validation = {"start": {"loss": 6.0}, "end": {"loss": 1.0 + lr}}
    summary = {"state": "finished", "steps": 1200, "seconds": 61.4, "validation": validation}
    (folder / "llm_tune" / "summary.json").write_text(json.dumps(summary))
    tuned = {"lr": lr, "note": EVIL}
    data = {"task": task}
    recipe = {"recipe": folder.name, "runs": str(folder), "llm_tune": tuned, "data": data}
    OmegaConf.save(OmegaConf.create(recipe), folder / "config.yaml")
    out = folder / "evaluate" / "test"
    out.mkdir(parents=True)
    cider = [{"CIDEr": each} for each in scores]
    write_samples(
        out, [Sample(f"{prefix}{i}", EVIL, (EVIL,), each) for i, each in enumerate(cider)]
    )
    found = {"CIDEr": sum(scores) / len(scores), "Bleu_4": 0.25}
    metrics = {"records": records or len(scores), "scores": found, "loss": 1.0, **more}
    (out / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    hard = [float(i % 7) for i in range(210)]
    return [
        put(tmp_path / "base", hard, lr=0.1),
        put(tmp_path / "better", [each + 0.5 for each in hard], lr=0.2),
        put(tmp_path / "other", hard[:70], lr=0.1),
    ]


def row(text: str, name: str) -> str:
    (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{name}  ")]
    return " ".join(line.split())


def test_the_text_shows_what_differs_and_how_sure_it_is(runs: list[Path]) -> None:
    text = compare_runs(runs).text
    assert row(text, "llm_tune.lr") == "llm_tune.lr 0.1 0.2 0.1"
    assert "llm_tune.note" not in text and "recipe  " not in text  # alike; of no meaning
    assert row(text, "steps") == "steps 1,200 1,200 1,200"
    assert "1.2000 [from 6.0000]" in row(text, "validation loss")
    cider = row(text, "CIDEr")
    assert re.search(r"^CIDEr 3\.0000 \[2\.\d+ to 3\.\d+\] 3\.5000 \[3\.\d+ to 3\.\d+\]", cider)
    # The same samples: paired, every one half a point better. Other samples: no interval.
    assert cider.endswith("+0.5000 [+0.5000 to +0.5000] +0.0000")
    assert "NOT COMPARABLE: not scored on the same samples" in text
    assert row(text, "Bleu_4") == "Bleu_4 0.2500 0.2500 0.2500 +0.0000 +0.0000"


def test_scores_of_the_corpus_have_intervals_and_what_has_none_is_named(tmp_path: Path) -> None:
    """BLEU and METEOR are no means over samples: they are drawn from what each sample adds."""
    folders = []
    for name, right in (("a", 5), ("b", 6)):
        folder = put(tmp_path / name, [1.0] * 50, lr=0.1)
        counts = [(10, 10, 10, 9, 8, 7, right + i % 4, 4, 3, 2) for i in range(50)]
        samples = [
            Sample(f"k{i}", EVIL, (EVIL,), {"CIDEr": 1.0}, counts={"Bleu": each})
            for i, each in enumerate(counts)
        ]
        write_samples(folder / "evaluate" / "test", samples)
        metrics = {"records": 50, "loss": 1.0, "scores": {"Bleu_1": (right + 1.46) / 10}}
        (folder / "evaluate" / "test" / "metrics.json").write_text(json.dumps(metrics))
        folders.append(folder)
    text = compare_runs(folders).text
    found = re.search(
        r"^Bleu_1 0\.6460 \[(0\.\d+) to (0\.\d+)\] 0\.7460 \[.*\] "
        r"\+0\.1000 \[\+0\.1000 to \+0\.1000\]$",
        row(text, "Bleu_1"),
    )
    assert found is not None
    low, high = map(float, found.groups())
    # The values are 0.5, 0.6, 0.7 and 0.8: their deviation is 0.11, and that of their mean 0.016.
    assert 0.60 < low < 0.625 and 0.665 < high < 0.69
    assert "Without: loss, of which nothing is kept for single samples." in text


def test_the_page_has_the_same_numbers_and_no_text_becomes_markup(runs: list[Path]) -> None:
    page = compare_runs(runs).page
    for number in ("+0.5000 to +0.5000", "from 6.0000", "1,200"):
        assert number in page
    assert "<script" not in page and page.count("data:image/svg+xml;base64,") >= 2
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:image/|#)""", page)


def test_answers_given_in_different_ways_are_flagged(tmp_path: Path) -> None:
    ways = [("a", "the likeliest option"), ("b", "generated")]
    folders = [put(tmp_path / name, [1.0, 2.0], lr=0.1, answers=way) for name, way in ways]
    text = compare_runs(folders).text
    assert "NOT COMPARABLE: answered in different ways" in text and "answered, b: gen" in text


def test_other_samples_of_the_same_count_are_flagged(tmp_path: Path) -> None:
    runs = [put(tmp_path / name, [1.0, 2.0], lr=0.1, prefix=name) for name in ("a", "b")]
    assert "NOT COMPARABLE: not scored on the same samples" in compare_runs(runs).text
    same = [runs[0], put(tmp_path / "c", [3.0, 4.0], lr=0.1, prefix="a")]
    assert "NOT COMPARABLE" not in compare_runs(same).text


def test_runs_of_different_tasks_are_flagged_as_such(tmp_path: Path) -> None:
    runs = [
        put(tmp_path / "a", [1.0, 2.0], lr=0.1),
        put(tmp_path / "b", [1.0], lr=0.1, task="scienceqa", answers="the likeliest option"),
    ]
    text = compare_runs(runs).text
    assert "NOT COMPARABLE: the tasks differ (a: captions, b: scienceqa)" in text
    assert text.count("NOT COMPARABLE") == 1


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("llm_tune/summary.json", {"steps": "many"}, "steps is 'many', which is no number"),
        ("llm_tune/summary.json", {"validation": "low"}, "validation is 'low', which is no table"),
        (
            "llm_tune/summary.json",
            {"validation": {"end": {"loss": "low"}}},
            r"validation\.end\.loss is 'low', which is no number",
        ),
        ("evaluate/test/metrics.json", {"scores": {"CIDEr": [1]}}, r"scores\.CIDEr is \[1\]"),
        ("evaluate/test/metrics.json", {"answers": ["a"]}, "answers is .* no text"),
    ],
)
def test_a_file_with_something_else_than_numbers_is_named(
    runs: list[Path], file: str, values: dict[str, Any], message: str
) -> None:
    (runs[1] / file).write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"better/{file}: {message}"):
        compare_runs(runs)


def test_a_folder_without_a_run_is_named(runs: list[Path]) -> None:
    empty = runs[0].with_name("empty")
    empty.mkdir()
    with pytest.raises(ConfigError, match="empty holds no run"):
        compare_runs([runs[0], empty])


def test_a_run_that_is_not_there_or_given_twice_is_named(runs: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"there is no run .*nowhere"):
        compare_runs([runs[0], runs[0].with_name("nowhere")])
    with pytest.raises(ConfigError, match="given twice"):
        compare_runs([runs[0], runs[0]])


def test_runs_are_named_by_folder_or_by_name(runs: list[Path]) -> None:
    assert named_runs([str(runs[0]), "better"], runs[0].parent) == runs[:2]


@pytest.fixture(scope="module")
def report() -> Callable[[list[str]], str]:
    """What `stages/report.py` says to a command line."""
    called: Callable[[list[str]], str] = runpy.run_path(f"{REPOSITORY}/stages/report.py")["report"]
    return called


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs=base,"], "names 1 run, and a comparison needs two or more"),
        (["runs=,"], "names 0 run"),
        (["runs=base"], "there is no run base/quickstart.* two or more of them: runs=A,B"),
        (["runs=base", "out=x.html"], "names 1 run"),
        (["runs=base,better", "foo=bar"], "unknown key 'foo'"),
        (["runs=base,better", "plan=maybe"], "plan=maybe: is neither true nor false"),
        (["runs=base,better", "out=nowhere/x.html"], "there is no folder nowhere; make it first"),
        (["runs=base,better", "out=base"], "base is a folder; name a file in it"),
        (["runs=base,better", "out=base/config.yaml/x"], "there is no folder base/config.yaml"),
        (["runs=base,better", f"out={'x' * 300}.html"], "cannot be written .*File name too long"),
        (["runs=base,.."], "holds no run"),
    ],
)
def test_a_wrong_command_line_is_answered_and_writes_nothing(
    runs: list[Path],
    report: Callable[[list[str]], str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    inside = runs[0].parent
    monkeypatch.chdir(inside)
    before = sorted(inside.rglob("*"))
    with pytest.raises(ConfigError, match=message):
        report(arguments)
    assert sorted(inside.rglob("*")) == before


def test_a_plan_says_what_would_be_compared_and_writes_nothing(
    runs: list[Path], report: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs[0].parent)
    for asked in ("--plan", "plan=true"):
        said = report(["runs=base,better,", asked])
        assert "compare base, better (evaluations: test; phases: llm_tune)" in said
        assert "write report.html; nothing is written now" in said
    assert not Path("report.html").exists()


def test_the_stage_writes_the_page_and_ends_with_2_on_what_it_refuses(runs: list[Path]) -> None:
    def called(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, f"{REPOSITORY}/stages/report.py", *arguments],
            cwd=runs[0].parent,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
        )

    done = called("runs=base,better", "out=page.html")
    assert (done.returncode, done.stderr) == (0, "")
    assert "with curves and plots: page.html" in done.stdout
    assert (runs[0].parent / "page.html").read_text().startswith("<!doctype html>")
    refused = called("runs=base,/etc")
    assert refused.returncode == 2 and refused.stderr.startswith("error: runs: /etc holds no run")
