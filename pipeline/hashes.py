"""Short hashes by which recipes, weights and data are told apart: of values, tensors and files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.durable import write_json


def fingerprint_of(*values: Any) -> str:
    """A short hash of JSON-able values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of names and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def content_hash(path: Path, cache: Path, *, remember: bool = True) -> str:
    """A short hash of a file's bytes, or of all files of a folder; the name itself if neither.

    Weights of many GB are read once: `cache` (JSON) remembers hashes by path, size and time;
    remember: whether new ones are written to it.
    """
    if not path.exists():
        return str(path)
    known: dict[str, str] = {}
    if cache.is_file():
        known = json.loads(cache.read_text(encoding="utf-8"))
    files = [path] if path.is_file() else sorted(each for each in path.iterdir() if each.is_file())
    hashes = []
    for file in files:
        status = file.stat()
        key = f"{file.resolve()}:{status.st_size}:{status.st_mtime_ns}"
        if key not in known:
            with file.open("rb") as opened:
                known[key] = hashlib.file_digest(opened, "sha256").hexdigest()
        hashes.append([file.name if path.is_dir() else "", known[key]])
    if remember:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_json(cache, known)
    return fingerprint_of(hashes)
