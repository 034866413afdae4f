"""Checkpoints on disk as the real functions write them, with small files instead of tensors."""

from pathlib import Path
from typing import Any

from pipeline.checkpoint_files import STATE, complete, move_in, path_of, writing_path
from pipeline.durable import write_json

FILES = {0: ("engine/a.pt", "random-0.safetensors"), 1: ("engine/b.pt",)}  # by rank


def put_checkpoint(folder: Path, step: int, **state: Any) -> Path:
    """A complete checkpoint of two ranks; its progress has at least the step."""
    state = {"fingerprint": "f", "ranks": 1, "layout": "ZeRO-3, fp32"} | state
    state["progress"] = {"step": step} | state.get("progress", {})
    writing, files = writing_path(folder, step), {}
    for rank, names in FILES.items():
        staging = folder / f"staging-{rank}"
        for name in names:
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes(f"{step} {name}".encode() * 100)
        if rank == 0:
            write_json(staging / STATE, state)
        files |= move_in(staging, writing, rank)
        for left in sorted(staging.rglob("*"), reverse=True):
            left.rmdir()  # nothing but folders is left there
        staging.rmdir()
    complete(writing, path_of(folder, step), files)
    return path_of(folder, step)
