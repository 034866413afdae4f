"""A recipe as flat values by dotted key: what tells runs apart, for people to read.

What a result depends on, and how two differ in that, is decided elsewhere (`provenance.py`); here
are the values as they stand in the recipe.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pipeline.config import Config

Value = str | int | float | bool

# Where things lie, how they were made, how a stage was called: of no meaning for what was learnt.
_NO_MEASURES = (
    *("recipe", "name", "runs", "make_missing", "overwrite", "resume_with_changes", "timeout"),
    *("plan", "plan_ranks", "paths", "prepare", "pretrain", "caption", "export", "checkpoints"),
    *("data.workers", "data.cache", "data.cache_gb", "data.cache_features", "evaluate.export"),
)


def flat(values: Mapping[str, Any]) -> dict[str, Value]:
    """Nested mappings as one, keys joined by dots; lists and null as text."""
    found: dict[str, Value] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": each for inner, each in flat(value).items()}
        else:
            found[key] = value if isinstance(value, str | int | float) else _text(value)
    return found


def measures(values: Mapping[str, Any]) -> dict[str, Value]:
    """`flat`, without what does not say how a model was made or scored."""
    return {
        key: value
        for key, value in flat(values).items()
        if not any(key == each or key.startswith(f"{each}.") for each in _NO_MEASURES)
    }


def unusual(config: Config) -> dict[str, Value]:
    """The `measures` of a recipe that are not the defaults."""
    usual = measures(asdict(Config()))
    return {k: v for k, v in measures(asdict(config)).items() if usual.get(k) != v}


def differing(recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Value | None]]:
    """Key -> its value in each run, of the `measures` in which runs differ; None: not there.

    recipes: the nested values of each run's recipe, by run.
    """
    by_run = {run: measures(values) for run, values in recipes.items()}
    keys = sorted({key for values in by_run.values() for key in values})
    rows = {key: {run: values.get(key) for run, values in by_run.items()} for key in keys}
    return {key: row for key, row in rows.items() if len({repr(v) for v in row.values()}) > 1}


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
