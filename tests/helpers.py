"""What several tests need from the machine, and how they say that it is not there.

Skip reasons start with one of two prefixes: CI allows shared data to be missing, but no system
package (see `conftest.py`).
"""

import os
import shutil
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"  # real data, beside the checkout

SYSTEM_PACKAGE_MISSING = "system package missing: "
SHARED_DATA_MISSING = "shared data missing: "

# command -> the Debian package that brings it
SYSTEM_PACKAGES = {
    "chromium": "chromium",
    "ip": "iproute2",
    "java": "default-jre-headless",
    "make": "make",
    "munged": "munge",
    "pdsh": "pdsh",
    "shellcheck": "shellcheck",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
}


def require_system(command: str) -> None:
    """Skip the test where a system command is not installed; in CI that fails the run."""
    if shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        package = SYSTEM_PACKAGES.get(command, command)
        pytest.skip(f"{SYSTEM_PACKAGE_MISSING}{command} (apt install {package})")


def require_shared(*parts: str) -> Path:
    """A path below the shared data beside the checkout; skips the test where it is missing."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{SHARED_DATA_MISSING}{Path('..', 'shared', *parts)}")
    return path
