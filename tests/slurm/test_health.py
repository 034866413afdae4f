"""Nodes that are not well, on a real Slurm: named, left out, and the job ends on the others."""

from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.test_jobs import ended, log_of, recipe, submit

pytestmark = pytest.mark.slurm

CHECKED = {"HEALTH": "1", "HEALTH_SECONDS": "60", "PIECES": "shards"}

__all__ = ["recipe"]


def test_a_node_that_is_ill_is_named_and_left_out_and_the_job_ends_well_on_the_others(
    cluster: Cluster, recipe: list[str], tmp_path: Path
) -> None:
    cluster.run("mount", "-o", "remount,size=1m", "/dev/shm", on="n2")
    try:
        flags = ("--nodes=2", "--nodelist=n1", f"--output={tmp_path}/job.out")
        job = submit(cluster, "phase.sh", *recipe, flags=flags, **CHECKED)
        fields = ended(cluster, job)
    finally:
        cluster.run("mount", "-o", "remount,size=50%", "/dev/shm", on="n2")
    log = log_of(fields)
    assert fields["JobState"] == "COMPLETED" and fields["Restarts"] == "1", log
    assert fields["NodeList"] == "n[1,3]" and fields["ExcNodeList"] == "n2"
    assert "n2 is ill: /dev/shm has 0.0 GB free, less than 1" in log
    assert "all nodes are well" in log and "finished: " in log.splitlines()[-1]


def test_where_no_node_is_ever_well_the_job_ends_with_the_reason(
    cluster: Cluster, recipe: list[str], tmp_path: Path
) -> None:
    flags = ("--nodes=1", f"--output={tmp_path}/job.out")
    job = submit(cluster, "phase.sh", *recipe, flags=flags, GPUS_PER_NODE="1", **CHECKED)
    fields = ended(cluster, job)
    assert (fields["JobState"], fields["ExitCode"], fields["Restarts"]) == ("FAILED", "2:0", "1")
    assert "two starts found no healthy node: n2: 0 GPUs, 1 expected" in log_of(fields)


@pytest.mark.by_hand
def test_where_too_few_nodes_are_left_the_job_is_cancelled_and_says_so(
    cluster: Cluster, recipe: list[str], tmp_path: Path
) -> None:
    cluster.run("mount", "-o", "remount,size=1m", "/dev/shm", on="n2")
    try:
        flags = ("--nodes=3", f"--output={tmp_path}/job.out")
        job = submit(cluster, "phase.sh", *recipe, flags=flags, **CHECKED)
        fields = ended(cluster, job)
    finally:
        cluster.run("mount", "-o", "remount,size=50%", "/dev/shm", on="n2")
    assert fields["JobState"] == "CANCELLED"
    assert "3 healthy nodes are wanted, 2 are left" in cluster.run("scontrol", "show", "job", job)


@pytest.mark.by_hand
def test_a_node_whose_clock_is_wrong_is_left_out(
    cluster: Cluster, recipe: list[str], tmp_path: Path
) -> None:
    """A time namespace moves no wall clock, so a Python of the test's own tells n2 another time."""
    python = tmp_path / "python"
    late = "import time; now = time.time; time.time = lambda: now() + 300"
    (tmp_path / "sitecustomize.py").write_text(
        f"import os\nif os.environ.get('SLURMD_NODENAME') == 'n2':\n    exec({late!r})\n"
    )
    python.write_text(
        f'#!/bin/bash\nPYTHONPATH={tmp_path}:$PYTHONPATH exec {Path.cwd()}/.venv/bin/python "$@"\n'
    )
    python.chmod(0o755)
    flags = ("--nodes=2", "--nodelist=n1", f"--output={tmp_path}/job.out")
    job = submit(cluster, "phase.sh", *recipe, flags=flags, PYTHON=str(python), **CHECKED)
    fields = ended(cluster, job)
    log = log_of(fields)
    assert fields["JobState"] == "COMPLETED" and fields["NodeList"] == "n[1,3]", log
    assert "n2 is ill: its clock is +300 s off" in log
