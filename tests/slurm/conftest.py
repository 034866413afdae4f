"""One cluster for all tests here; where there can be none they are skipped with the reason."""

from collections.abc import Iterator

import pytest

from tests.helpers import require_system
from tests.slurm.cluster import TOOLS, Cluster, forbidden


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    for tool in TOOLS:
        require_system(tool)
    reason = forbidden()
    if reason is not None:
        pytest.skip(f"no cluster without namespaces: {reason}")
    started = Cluster(3, gpus=8)  # no real ones: for the headers of the scripts
    yield started
    started.down()
