"""How a key of the recipe is declared: its default, and which values it takes.

`recipe.py` reads these marks when it checks a recipe.
"""

from dataclasses import field
from typing import Any


def one_of(default: str, *choices: str) -> Any:
    """A string field that accepts only `choices` (OmegaConf itself would accept any string)."""
    return field(default=default, metadata={"choices": choices})


def null_or_one_of(*choices: str) -> Any:
    """As `one_of`, and null, which is the default."""
    return field(default=None, metadata={"choices": choices})


def not_negative(default: float | None) -> Any:
    """A number field whose value must be zero or more (or null, where that is the default)."""
    return field(default=default, metadata={"not_negative": True})


def positive(default: float) -> Any:
    """A number field whose value must be above zero."""
    return field(default=default, metadata={"positive": True})


def path(default: str | None = "") -> Any:
    """A file or a folder: `~` and variables of the environment in it are expanded."""
    return field(default=default, metadata={"path": True})
