"""SPICE: found where its models are, said once where not, and never the end of a run.

Its models cannot be had from a package index, so a stand-in for `java` answers here in the format
of the real program; with EIM_SPICE_MODELS set to a folder that holds them, the real one is asked.
"""

import logging
import os
import stat
import sys
from pathlib import Path

import pytest

from pipeline.config import EvaluateConfig
from pipeline.errors import DataError
from pipeline.evaluation import captions, results
from pipeline.evaluation.spice import MODELS, how_to_get_spice, spice, spice_models
from tests.helpers import require_system

REFERENCES = {"x": ["a red ball", "one ball"], "y": ["two dogs run"]}
PREDICTIONS = {"x": "one ball", "y": "a cat"}

# Scores 1 where the caption is one of the references, and takes nothing but what SPICE takes.
JAVA = """#!{python}
import json, os, sys
assert "--add-opens java.base/java.lang=ALL-UNNAMED" in os.environ["JDK_JAVA_OPTIONS"]
arguments = sys.argv[1:]
jars = arguments[arguments.index("-cp") + 1].split(os.pathsep)
assert all(os.path.isfile(jar) for jar in jars if not jar.endswith("*")), jars
asked, answered = arguments[arguments.index("edu.anu.spice.SpiceScorer") + 1], arguments[-3]
{body}
"""
ANSWER = """
scores = [
    {"image_id": e["image_id"], "scores": {"All": {"f": float(e["test"] in e["refs"])}}}
    for e in json.load(open(asked))
]
json.dump(scores, open(answered, "w"))
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    for name in MODELS:
        (folder / name).touch()
    return folder


def java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    script = tmp_path / "java"
    script.write_text(JAVA.replace("{python}", sys.executable).replace("{body}", body))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_the_mean_over_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Path
) -> None:
    java(tmp_path, monkeypatch, ANSWER)
    assert spice_models(str(models)) == models
    each = spice(PREDICTIONS, REFERENCES, models)
    assert each == {"x": 1.0, "y": 0.0} and captions.mean_of(each) == 0.5


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("sys.exit('no heap')", "SPICE failed in Java: no heap; check that 8 GB"),
        ("", "SPICE left no readable scores"),
    ],
)
def test_a_failure_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Path, body: str, reason: str
) -> None:
    java(tmp_path, monkeypatch, body)
    with pytest.raises(DataError, match=reason) as caught:
        spice(PREDICTIONS, REFERENCES, models)
    assert "\n" not in str(caught.value)


def test_without_models_it_is_said_how_to_get_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)
    folder = str(tmp_path)
    assert spice_models(folder) is None
    assert f"they are not in {folder}; put {MODELS[0]}" in how_to_get_spice(folder)
    with caplog.at_level(logging.INFO, "pipeline"):
        results.announce_spice(EvaluateConfig(spice_models=folder))
        results.announce_spice(EvaluateConfig(spice_models=folder, metrics=["cider"]))
    assert caplog.text.count("SPICE is left out") == 1


@pytest.mark.parametrize(("body", "expected"), [(ANSWER, {"SPICE": 0.5}), ("sys.exit(3)", {})])
def test_spice_joins_the_scores_and_its_failure_costs_no_other(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    models: Path,
    body: str,
    expected: dict[str, float],
) -> None:
    monkeypatch.setattr(captions, "ptb_tokenize", list)
    java(tmp_path, monkeypatch, body)
    settings = EvaluateConfig(metrics=["quick_cider", "spice"], spice_models=str(models))
    found = results._scores(settings, PREDICTIONS, REFERENCES)
    assert found.each.get("SPICE") == ({"x": 1.0, "y": 0.0} if expected else None)
    scores = found.totals
    assert scores.pop("CIDEr_quick") > 0
    assert scores == expected


@pytest.mark.slow
def test_the_real_program() -> None:
    require_system("java")
    folder = os.environ.get("EIM_SPICE_MODELS", "")
    found = spice_models(folder or None)
    if found is None:
        pytest.skip("SPICE's models are not here (set EIM_SPICE_MODELS to their folder)")
    perfect = {key: texts[0] for key, texts in REFERENCES.items()}
    assert captions.mean_of(captions.spice_each(perfect, REFERENCES, found)) > 0.6
    assert captions.mean_of(captions.spice_each(PREDICTIONS, REFERENCES, found)) < 0.6
