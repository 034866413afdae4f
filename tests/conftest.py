"""The environment of all tests, the `shared` fixture, and CI's rule about skipped tests.

With CI_NO_SKIP=1 a run fails when a test was skipped because a system package is missing: such a
run would look green without having tested anything.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import SYSTEM_PACKAGE_MISSING, require_shared

# Before torch or a hub library is imported; the processes that tests start inherit it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; skips where it is missing."""
    return require_shared()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turn a run with forbidden skips into a failed one."""
    if any(_forbidden_skips(session.config)) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say why the run failed although no test did."""
    reasons = sorted(set(_forbidden_skips(config)))
    if reasons:
        terminalreporter.section("CI_NO_SKIP=1: skipped tests that must run", red=True)
        terminalreporter.write_line("\n".join(reasons))


def _forbidden_skips(config: pytest.Config) -> Iterator[str]:
    """The reasons of skips that CI does not allow."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI_NO_SKIP") != "1" or reporter is None:
        return
    for report in reporter.stats.get("skipped", []):
        # longrepr of a skip is (file, line, "Skipped: reason")
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        if reason.startswith(SYSTEM_PACKAGE_MISSING):
            yield reason
