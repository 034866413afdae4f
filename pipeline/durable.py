"""Files that a crash leaves whole or not at all, and what there is of a path.

Plain functions that raise OSError; those of the data, with advice and patience, are in
`data/files.py`.
"""

import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4


def write_json(path: Path, value: Any, *, shared: bool = False) -> None:
    """Writes JSON as `write_text` does."""
    write_text(path, json.dumps(value, indent=2) + "\n", shared=shared)


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Writes a text by atomic rename: after a power cut, too, it is the old one or the new one.

    shared: other processes may write the same path at the same time; the last one counts.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex if shared else 'tmp'}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def remembered(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, or none that can be read.

    For what can be made anew, so that a crash's remains stop nobody.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def sync(path: Path) -> None:
    """Makes a file or a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())
