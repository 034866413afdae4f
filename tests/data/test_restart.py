"""Preparing that is killed: a real process, SIGKILL, and the same bytes after the next run."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import PrepareConfig
from pipeline.data.prepare import prepare
from tests.data.samples import jpeg, make_tar
from tests.helpers import REPOSITORY

SHARDS = 150
_PATIENCE = 60.0  # seconds


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


def content(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def own_images(folder: Path) -> dict[str, object]:
    """Two records a shard, and one image that is not there."""
    (folder / "images").mkdir()
    names = [f"{number:04d}.jpg" for number in range(2 * SHARDS - 1)]
    for number, name in enumerate(names):
        (folder / "images" / name).write_bytes(jpeg((number % 256, 0, 0)))
    rows = [f"{name},caption of {name}" for name in [*names, "gone.jpg"]]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    return {
        "source": "folder",
        "images": str(folder / "images"),
        "captions": str(folder / "captions.csv"),
        "records_per_shard": 2,
    }


def shards_of_others(folder: Path) -> dict[str, object]:
    for number in range(SHARDS):
        members = [(f"{number}.jpg", jpeg()), (f"{number}.txt", b"text"), ("alone.txt", b"text")]
        make_tar(folder / "tars" / f"{number:05d}.tar", members)
    return {"source": "webdataset", "shards": str(folder / "tars"), "hash": True}


def start(settings: dict[str, object]) -> subprocess.Popen[bytes]:
    arguments = [f"{key}={value}" for key, value in settings.items()]
    return subprocess.Popen(
        [sys.executable, "stages/prepare.py", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("make", [own_images, shards_of_others])
def test_a_killed_run_is_finished_by_the_next_one(
    tmp_path: Path, make: Callable[[Path], dict[str, object]]
) -> None:
    settings = make(tmp_path)
    whole = PrepareConfig(**{**settings, "out": str(tmp_path / "whole"), "workers": 0})
    prepare(whole, report=lambda _: None)

    out = tmp_path / "out" / "train"
    killed = start({**settings, "out": out.parent, "workers": 2})
    wait_until(lambda: killed.poll() is not None or len(list(out.glob("*.npz"))) >= 3)
    workers = children(killed.pid)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert workers and not (out / "manifest.json").exists()
    # Orphans would go on writing while the next run does.
    wait_until(lambda: not any(map(alive, workers)))
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.npz")}
    assert 3 <= len(finished) < SHARDS

    again = start({**settings, "out": out.parent, "workers": 2})
    said, _ = again.communicate(timeout=_PATIENCE)
    assert again.returncode == 0, said.decode()
    assert content(out) == content(tmp_path / "whole" / "train")
    assert "skipped: 1 missing image (gone)" in said.decode() or "no image member" in said.decode()
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
