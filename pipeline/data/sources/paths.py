"""Checks of the paths that a source is given, and reading of its JSON files."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DataError


def need_file(key: str, value: str, what: str) -> Path:
    """Return the path of a file that must exist; `what` says what it should be."""
    path = Path(value).expanduser()
    if not value or not path.is_file():
        reason = "is not set" if not value else "no such file"
        raise ConfigError(f"{key}={value!r}: {reason}; set {key} to {what}")
    return path


def need_folder(key: str, value: str, what: str) -> Path:
    """Return the path of a folder that must exist; `what` says what it should be."""
    path = Path(value).expanduser()
    if not value or not path.is_dir():
        reason = "is not set" if not value else "no such folder"
        raise ConfigError(f"{key}={value!r}: {reason}; set {key} to {what}")
    return path


def need_some(key: str, value: str, paths: Iterable[Path]) -> None:
    """Refuse a folder that holds none of the images: one missing image is a skip, all a mistake."""
    first: Path | None = None
    for path in paths:
        if path.is_file():
            return
        first = first or path
    if first is not None:
        raise ConfigError(
            f"{key}={value!r}: holds none of the images (the first would be {first}); "
            f"set {key} to the folder that holds them"
        )


def read_json(key: str, path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises DataError when there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        cause = " ".join(str(error).split())
        raise DataError(f"{key}={path}: not readable as JSON ({cause}); get it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{key}={path}: holds no JSON object; get it again")
    return content
