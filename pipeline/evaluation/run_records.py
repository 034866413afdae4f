"""What a run's folder holds: its recipe, its phases' summaries, its evaluations.

Does not assume that any of it exists; knows no model. Reads, and refuses what cannot be read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pipeline.config import PHASES, TASKS
from pipeline.errors import DataError
from pipeline.evaluation.samples import Sample, read_samples

Record = Mapping[str, Any]

REPORT = "report.html"  # what there is to look at, in an evaluation's folder

# What is read of a file, if it is there: a number, a text, or a table of such by key.
Shape = type[float] | type[str] | Mapping[str, Any]
_NUMBERS: Shape = {"*": float}
_SUMMARY: Shape = {
    **dict.fromkeys(("steps", "records_seen", "trained_parameters", "seconds"), float),
    "train_loss_end": float,
    "validation": {"start": _NUMBERS, "end": _NUMBERS},
}
_METRICS: Shape = {
    **dict.fromkeys(("records", "loss"), float),
    **dict.fromkeys(("task", "answers", "table"), str),
    **dict.fromkeys(("scores", "retrieval", "skipped"), _NUMBERS),
    "benchmark": {
        **dict.fromkeys(("accuracy", "missing"), _NUMBERS),
        **dict.fromkeys(("unparsed", "unanswered"), float),
    },
}


@dataclass(frozen=True)
class Evaluation:
    """A folder of an evaluation: its metrics.json, and its samples when they are asked for."""

    folder: Path
    metrics: Record

    @cached_property
    def samples(self) -> list[Sample]:
        """None where an older evaluation left no samples.jsonl. Raises DataError."""
        return read_samples(self.folder)

    @cached_property
    def sampled(self) -> frozenset[tuple[str, tuple[str, ...]]]:
        """Which samples were scored: their keys, and what is true of them."""
        return frozenset((each.key, each.truth) for each in self.samples)

    @cached_property
    def task(self) -> str | None:
        """What was to be done; None where metrics, folder (`output_folder`) and recipe are silent.

        Raises DataError.
        """
        asked = self.folder.name.partition("-")[0]
        found = self.metrics.get("task") or (asked if asked in TASKS else None)
        return found or _task_in(_read_recipe(self.folder.parents[1] / "config.yaml"))

    @property
    def numbers(self) -> dict[str, float | None]:
        """All scores in one dictionary: loss first, retrieval last."""
        scores = {"loss": self.metrics.get("loss")}
        scores |= dict(self.metrics.get("scores") or {})
        return scores | dict(self.metrics.get("retrieval") or {})


@dataclass(frozen=True)
class Run:
    """What one run's folder holds."""

    folder: Path
    config: DictConfig  # config.yaml, empty where there is none
    phases: Mapping[str, Record] = field(default_factory=dict)  # phase -> summary.json
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)  # by folder: split, or task

    @property
    def is_empty(self) -> bool:
        """Whether the folder holds nothing that a run leaves."""
        return not (self.config or self.phases or self.evaluations)


def read_run(folder: Path) -> Run:
    """Read a run.

    Raises:
        DataError: a file is there but cannot be read.
    """
    phases = {phase: _read_json(folder / phase / "summary.json", _SUMMARY) for phase in PHASES}
    found = {path.name: read_evaluation(path) for path in sorted(folder.glob("evaluate/*"))}
    return Run(
        folder,
        _read_recipe(folder / "config.yaml"),
        {phase: summary for phase, summary in phases.items() if summary is not None},
        {name: each for name, each in found.items() if each is not None},
    )


def read_evaluation(folder: Path) -> Evaluation | None:
    """Read an evaluation's folder; None where it has no metrics. Raises what `read_run` does."""
    metrics = _read_json(folder / "metrics.json", _METRICS)
    return None if metrics is None else Evaluation(folder, metrics)


def _read_recipe(path: Path) -> DictConfig:
    if not path.is_file():
        return OmegaConf.create()
    try:
        loaded = OmegaConf.load(path)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        cause = " ".join(str(error).split())
        raise DataError(f"{path} is no recipe ({cause}): run a stage of it again") from error
    return loaded if isinstance(loaded, DictConfig) else OmegaConf.create()


def _task_in(recipe: DictConfig) -> str | None:
    data = recipe.get("data")
    return data.get("task") if isinstance(data, DictConfig) else None


def _read_json(path: Path, shape: Shape) -> Record | None:
    """The object in a JSON file, or None where there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(
            f"{path} is not valid JSON ({error}): delete it and run its stage again"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} does not hold a JSON object: delete it and run its stage again")
    _check(path, content, shape)
    return content


def _check(path: Path, value: Any, shape: Shape, key: str = "") -> None:
    """Raises DataError where a value is there that is not of this shape."""
    kinds: dict[Any, tuple[Any, str]] = {float: (int | float, "number"), str: (str, "text")}
    kind, called = (dict, "table") if isinstance(shape, Mapping) else kinds[shape]
    if not isinstance(value, kind):
        raise DataError(
            f"{path}: {key} is {value!r}, which is no {called}: delete it and run its stage again"
        )
    if isinstance(shape, Mapping):
        for name, each in value.items():
            inner = shape.get(name, shape.get("*"))
            if inner is not None and each is not None:
                _check(path, each, inner, f"{key}.{name}".lstrip("."))
