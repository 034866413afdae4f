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

from pipeline.config import PHASES
from pipeline.errors import DataError
from pipeline.evaluation.samples import Sample, read_samples

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """A folder of an evaluation: its metrics.json, and its samples when they are asked for."""

    folder: Path
    metrics: Record

    @cached_property
    def samples(self) -> list[Sample]:
        """None where an older evaluation left no samples.jsonl. Raises DataError."""
        return read_samples(self.folder)

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


def read_run(folder: Path) -> Run:
    """Read a run.

    Raises:
        DataError: a file is there but cannot be read.
    """
    phases = {phase: _read_json(folder / phase / "summary.json") for phase in PHASES}
    found = {path.name: read_evaluation(path) for path in sorted(folder.glob("evaluate/*"))}
    return Run(
        folder,
        _read_recipe(folder / "config.yaml"),
        {phase: summary for phase, summary in phases.items() if summary is not None},
        {name: each for name, each in found.items() if each is not None},
    )


def read_evaluation(folder: Path) -> Evaluation | None:
    """Read an evaluation's folder; None where it has no metrics. Raises what `read_run` does."""
    metrics = _read_json(folder / "metrics.json")
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


def _read_json(path: Path) -> Record | None:
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
    return content
