"""One cluster for all tests here; without root or Slurm they are skipped with the reason."""

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, missing_tools


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    lacking = missing_tools()
    if lacking:
        pytest.skip(f"a Slurm cluster needs {', '.join(lacking)} (apt-get install slurm-wlm munge)")
    started = Cluster(3)
    yield started
    started.down()
