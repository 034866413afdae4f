"""An attempt that was cut off and comes back, on a real Slurm: it writes nothing any more."""

import json
from pathlib import Path

import pytest

from pipeline.checkpoint_files import checkpoints, fault_in
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import Job, align_recipe

pytestmark = pytest.mark.slurm

STEPS = 40


def test_a_ghost_that_comes_back_with_its_network_writes_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    recipe = align_recipe(tmp_path, STEPS, st_align__checkpoint_every=2)
    job = Job.submit(cluster, "phase.sh", recipe, f"runs={tmp_path}/runs", PIECES="st_align")
    job.wait_for_step(3)
    run = tmp_path / "runs" / "tiny"
    (claim,) = (run / ".owner").glob("*.json")
    ghost = json.loads(claim.read_text())
    node, pid = ghost["host"], str(ghost["pid"])
    # A file system of the network would stand still as well; here it does not, so the process does.
    cluster.run("kill", "-STOP", pid, on=node)
    cluster.link(node, "down")
    try:
        job.wait_for("a new owner", lambda: not claim.exists())
        cluster.run("kill", "-CONT", pid, on=node)
        job.wait_for_words(f"{run} was taken over by job {job.number}, restart 1")
    finally:
        cluster.link(node, "up")
    job.succeeded()
    assert job.fields["BatchHost"] != node
    summary = json.loads((run / "st_align" / "summary.json").read_text())
    assert (summary["state"], summary["steps"]) == ("finished", STEPS)
    left = checkpoints(run / "st_align" / "checkpoints")
    assert left and all(fault_in(each) is None for each in left)
    assert not list(run.rglob("damaged-*")) and not list(run.rglob(".writing-*"))
    cluster.wait_for("the node", lambda: cluster.run("sinfo", "-hn", node, "-o%t") == "idle\n")
