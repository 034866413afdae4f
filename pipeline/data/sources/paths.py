"""Checks of the paths that a source is given, and reading of its JSON files."""

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DataError


def need_file(key: str, value: str, what: str) -> Path:
    """Return the path of a file that must exist; `what` says what it should be."""
    path = Path(value).expanduser()
    reason = _unusable(value, "file", exists=os.path.isfile(path), rights=os.access(path, os.R_OK))
    if reason:
        raise ConfigError(f"{key}={value!r}: {reason}; set {key} to {what}")
    return path


def need_folder(key: str, value: str, what: str) -> Path:
    """Return the path of a folder that must exist; `what` says what it should be."""
    path = Path(value).expanduser()
    rights = os.access(path, os.R_OK | os.X_OK)
    reason = _unusable(value, "folder", exists=os.path.isdir(path), rights=rights)
    if reason:
        raise ConfigError(f"{key}={value!r}: {reason}; set {key} to {what}")
    return path


def _unusable(value: str, kind: str, *, exists: bool, rights: bool) -> str:
    """Why a path cannot be used, "" where it can."""
    if not value:
        return "is not set"
    if not exists:
        return f"no such {kind}"
    return "" if rights else f"you may not read this {kind}"


def need_some(key: str, value: str, paths: Iterable[Path]) -> None:
    """Refuse a folder that holds none of the images: one missing image is a skip, all a mistake."""
    first: Path | None = None
    for path in paths:
        if os.path.isfile(path):
            return
        first = first or path
    if first is not None:
        raise ConfigError(
            f"{key}={value!r}: holds none of the images (the first would be {first}); "
            f"set {key} to the folder that holds them"
        )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"{name!r} is there twice")
    return found


def read_json(key: str, path: Path, *, unique: bool = False) -> dict[str, Any]:
    """Return the object in a JSON file; raises DataError when there is none.

    unique: refuse a file that says a name twice in one object, of which JSON keeps the last.
    """
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_once if unique else None)
    except (OSError, ValueError, RecursionError) as error:
        cause = " ".join(str(error).split())
        raise DataError(f"{key}={path}: not readable as JSON ({cause}); get it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{key}={path}: holds no JSON object; get it again")
    return content
