"""The project files: the rule about skips in CI, pinned versions, the Python check of make."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY, require_system

SKIPS = """
import pytest
from tests.helpers import require_system

def test_system(): require_system("no-such-command")
def test_other(): pytest.skip("shared data missing: ../shared/x")
def test_passes(): pass
"""


def run_pytest(folder: Path, selection: str, ci_no_skip: str) -> subprocess.CompletedProcess[str]:
    """Run a selection of `SKIPS` under the real conftest."""
    (folder / "test_skips.py").write_text(SKIPS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", os.devnull]
    command += ["--rootdir", str(folder), str(folder), "-k", selection]
    environment = os.environ | {"CI_NO_SKIP": ci_no_skip}
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("selection", "ci_no_skip", "code"),
    [
        ("test_system or test_passes", "1", 1),
        ("test_system or test_passes", "", 0),
        ("test_other or test_passes", "1", 0),
    ],
)
def test_ci_fails_when_a_system_package_is_missing(
    tmp_path: Path, selection: str, ci_no_skip: str, code: int
) -> None:
    done = run_pytest(tmp_path, selection, ci_no_skip)
    assert done.returncode == code, done.stdout + done.stderr
    reason = "system package missing: no-such-command (apt install no-such-command)"
    assert (reason in done.stdout) == (code == 1)
    assert "1 passed, 1 skipped" in done.stdout


def test_constraints_are_pinned_versions_without_addresses() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!]+", pin) for pin in pins)
    names = {pin.partition("==")[0].lower() for pin in pins}
    assert {"torch", "deepspeed", "transformers", "pytest", "ruff", "mypy"} <= names


def test_make_refuses_an_old_python_in_one_line(tmp_path: Path) -> None:
    require_system("make")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((REPOSITORY / name).read_text())
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(
        ["make", f"PYTHON={old}", "test"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "is not a Python 3.11 or newer: name one with make PYTHON=" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_lint_sees_every_file() -> None:
    ruff = Path(sys.executable).with_name("ruff")
    shown = subprocess.run(
        [ruff, "check", "--show-files", "."], cwd=REPOSITORY, capture_output=True, text=True
    ).stdout
    for folder in ("pipeline", "stages", "tests"):
        files = set(map(str, (REPOSITORY / folder).rglob("*.py")))
        assert files and files <= set(shown.splitlines())
