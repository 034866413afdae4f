"""Short hashes by which recipes, weights and data are told apart: of values, tensors and files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.durable import remembered, write_json


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


def content_hashes(path: Path, cache: Path, *, remember: bool = True) -> dict[str, str]:
    """A short hash of the bytes of each file of a folder, by name; of a file itself, by "".

    Hidden files and Markdown (a model's README) are no content. Weights of many GB are read once:
    `cache` (JSON, which runs share) remembers hashes by path, size and time; remember: whether new
    ones are written to it. path: must exist.
    """
    known = remembered(cache)
    before = len(known)
    files = [path] if path.is_file() else sorted(filter(_is_content, path.iterdir()))
    hashes = {}
    for file in files:
        status = file.stat()
        key = f"{file.resolve()}:{status.st_size}:{status.st_mtime_ns}"
        if key not in known:
            with file.open("rb") as opened:
                known[key] = hashlib.file_digest(opened, "sha256").hexdigest()
        hashes["" if file == path else file.name] = known[key][:16]
    if remember and len(known) > before:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_json(cache, known, shared=True)
    return hashes


def _is_content(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.suffix != ".md"
