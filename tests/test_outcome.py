"""The line that tells a job script how a stage ended."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.outcome import FAILED, FINISHED, OUTCOME, note_outcome
from pipeline.stage import leave_with_user_error


@pytest.fixture
def outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "outcome"
    monkeypatch.setenv(OUTCOME, str(path))
    return path


def test_the_first_cause_stays(outcome: Path) -> None:
    note_outcome(FAILED, "rank 1 (n2) is gone:\n killed", 1)
    note_outcome(FINISHED)
    assert outcome.read_text() == "1 failed rank 1 (n2) is gone: killed\n"
    assert [*outcome.parent.iterdir()] == [outcome]


def test_an_error_of_the_users_has_its_code_and_its_line(
    outcome: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    monkeypatch.setattr("pipeline.stage.leave", left.append)
    leave_with_user_error(ConfigError("lr=x must be a number"), rank=0)
    assert left == [2] and outcome.read_text() == "2 failed lr=x must be a number\n"


def test_a_folder_that_takes_nothing_hides_no_cause(outcome: Path) -> None:
    outcome.parent.rmdir()
    note_outcome(FAILED, "why", 1)  # the log says it too


def test_nothing_is_written_outside_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(OUTCOME, raising=False)
    note_outcome(FINISHED)
    assert not [*tmp_path.iterdir()]
