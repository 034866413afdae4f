"""Nodes that are not well, on a real Slurm: named, left out, and the job ends on the others."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import Job, align_recipe

pytestmark = pytest.mark.slurm

CHECKED = {"HEALTH": "1", "HEALTH_SECONDS": "90", "PIECES": "shards"}


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    return [align_recipe(tmp_path, 4), f"runs={tmp_path}/runs"]


@pytest.fixture
def n2_is_ill(cluster: Cluster) -> Iterator[None]:
    """It has no shared memory to speak of."""
    cluster.run("mount", "-o", "remount,size=1m", "/dev/shm", on="n2")
    yield
    cluster.run("mount", "-o", "remount,size=50%", "/dev/shm", on="n2")


@pytest.mark.usefixtures("n2_is_ill")
def test_a_node_that_is_ill_is_named_and_left_out_and_the_job_ends_well_on_the_others(
    cluster: Cluster, arguments: list[str]
) -> None:
    job = Job.submit(cluster, "phase.sh", *arguments, flags=("--nodes=2",), **CHECKED)
    log = job.succeeded()
    assert job.fields["NodeList"] == "n[1,3]" and job.fields["ExcNodeList"] == "n2"
    assert job.attempt == 1
    assert "n2 is ill: /dev/shm has 0.0 GB free, less than 1" in job.words_of(0)
    assert "all nodes are well" in job.words_of(1) and "finished: " in log.splitlines()[-1]


def test_where_slurm_itself_does_not_answer_no_node_is_blamed(
    cluster: Cluster, arguments: list[str], tmp_path: Path
) -> None:
    """As while its controller restarts: srun ends without having started anything."""
    srun = tmp_path / "srun"
    srun.write_text(
        f"#!/bin/bash\necho >> {tmp_path}/calls\n"
        f'(($(wc -l < {tmp_path}/calls) > 2)) && exec {shutil.which("srun")} "$@"\nexit 1\n'
    )
    srun.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    job = Job.submit(cluster, "phase.sh", *arguments, flags=("--nodes=2",), PATH=path, **CHECKED)
    assert " is ill" not in job.succeeded() and job.attempt == 0


def test_where_no_node_is_ever_well_the_job_ends_with_the_reason(
    cluster: Cluster, arguments: list[str]
) -> None:
    # Of a whole node (--exclusive) Slurm gives all of the box's GPUs, which nothing can compute on.
    job = Job.submit(cluster, "phase.sh", *arguments, **{**CHECKED, "GPUS_PER_NODE": "1"})
    assert job.end() == "FAILED" and job.fields["ExitCode"] == "2:0", job.log
    assert job.attempt == 1
    assert "two starts found no healthy node: n2: 0 GPUs, 8 expected" in job.comment


@pytest.mark.usefixtures("n2_is_ill")
def test_where_too_few_nodes_are_left_the_job_is_cancelled_and_says_so(
    cluster: Cluster, arguments: list[str]
) -> None:
    job = Job.submit(cluster, "phase.sh", *arguments, flags=("--nodes=3",), **CHECKED)
    assert job.end() == "CANCELLED"
    assert job.comment == "3 healthy nodes are wanted, 2 are left without n2"


def test_a_node_whose_clock_is_wrong_is_left_out(
    cluster: Cluster, arguments: list[str], tmp_path: Path
) -> None:
    """No namespace has a wall clock of its own, so Python itself tells n2 another time."""
    late = "import time; now = time.time; time.time = lambda: now() + 300"
    (tmp_path / "sitecustomize.py").write_text(
        f"import os\nif os.environ.get('SLURMD_NODENAME') == 'n2':\n    exec({late!r})\n"
    )
    path = f"{tmp_path}:{REPOSITORY}"
    job = Job.submit(
        cluster, "phase.sh", *arguments, flags=("--nodes=2",), PYTHONPATH=path, **CHECKED
    )
    log = job.succeeded()
    assert job.fields["NodeList"] == "n[1,3]"
    assert "n2 is ill: its clock is +300 s off" in log
