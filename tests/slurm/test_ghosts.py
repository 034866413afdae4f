"""An attempt that was cut off and comes back, on a real Slurm: it writes nothing any more."""

import json
from pathlib import Path

import pytest

from pipeline.checkpoint_files import checkpoints, fault_in
from tests.slurm.cluster import Cluster
from tests.slurm.test_jobs import ended, log_of, recipe, submit

pytestmark = pytest.mark.slurm

__all__ = ["recipe"]


def test_a_ghost_that_comes_back_with_its_network_writes_nothing(
    cluster: Cluster, recipe: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "tiny"
    steps = ["encoder_adapt.epochs=16", "encoder_adapt.checkpoint_every=2"]
    flags = ("--nodes=1", f"--output={tmp_path}/job.out")
    job = submit(cluster, "phase.sh", *recipe, *steps, flags=flags, PIECES="encoder_adapt")
    saved = run / "encoder_adapt" / "checkpoints"
    cluster.wait_for("a checkpoint", lambda: bool(checkpoints(saved)), 120)
    (claim,) = (run / ".owner").glob("*.json")
    ghost = json.loads(claim.read_text())
    node, pid = ghost["host"], str(ghost["pid"])
    # A file system of the network would stand still as well; here it does not, so the process does.
    cluster.run("kill", "-STOP", pid, on=node)
    cluster.link(node, "down")
    try:
        cluster.wait_for("the new owner", lambda: not claim.exists(), 120)
        cluster.run("kill", "-CONT", pid, on=node)
        said = f"was taken over by job {job}, restart 1"
        log = tmp_path / "job.out"
        cluster.wait_for("the ghost's end", lambda: said in log.read_text(), 60)
    finally:
        cluster.link(node, "up")
    fields = ended(cluster, job)
    assert fields["JobState"] == "COMPLETED" and fields["BatchHost"] != node, log_of(fields)
    summary = json.loads((run / "encoder_adapt" / "summary.json").read_text())
    assert (summary["state"], summary["steps"]) == ("finished", 64)
    assert all(fault_in(each) is None for each in checkpoints(saved))
    assert not list(run.rglob("damaged-*"))
    cluster.wait_for("the node", lambda: cluster.run("sinfo", "-hn", node, "-o%t") == "idle\n")
