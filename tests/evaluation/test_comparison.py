"""Several runs side by side: where recipes differ, how phases went, how sure scores are."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from pipeline.errors import ConfigError
from pipeline.evaluation.comparison import compare_runs, named_runs
from pipeline.evaluation.samples import Sample, write_samples

EVIL = "<script>alert(1)</script>"


def put(folder: Path, scores: list[float], *, lr: float, records: int = 0, **more: Any) -> Path:
    """A run that has finished llm_tune and was scored on the test split."""
    (folder / "llm_tune").mkdir(parents=True)
    validation = {"start": {"loss": 6.0}, "end": {"loss": 1.0 + lr}}
    summary = {"state": "finished", "steps": 1200, "seconds": 61.4, "validation": validation}
    (folder / "llm_tune" / "summary.json").write_text(json.dumps(summary))
    recipe = {"recipe": folder.name, "runs": str(folder), "llm_tune": {"lr": lr, "note": EVIL}}
    OmegaConf.save(OmegaConf.create(recipe), folder / "config.yaml")
    out = folder / "evaluate" / "test"
    out.mkdir(parents=True)
    samples = [Sample(f"k{i}", EVIL, (EVIL,), {"CIDEr": each}) for i, each in enumerate(scores)]
    write_samples(out, samples)
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


def test_a_run_that_is_not_there_or_given_twice_is_named(runs: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"there is no run .*nowhere"):
        compare_runs([runs[0], runs[0].with_name("nowhere")])
    with pytest.raises(ConfigError, match="given twice"):
        compare_runs([runs[0], runs[0]])


def test_runs_are_named_by_folder_or_by_name(runs: list[Path]) -> None:
    assert named_runs([str(runs[0]), "better"], runs[0].parent) == runs[:2]
