"""What befalls a job on a real Slurm, and that its end is that of a run which nothing befell.

One job suffers all that needs no luck to come back from; the other ways to lose a node are tried
by hand (`by_hand`), one by one, as each costs Slurm's patience with a silent node.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.jobs import Job, align_recipe, same_weights

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

STEPS = 120
LONG = 600  # longer than Slurm takes to notice anything
SIGNAL = "--signal=B:USR1@60"  # Slurm looks every 30 s, so it comes 60 to 90 s before the limit
CHECKPOINTS = "runs/tiny/st_align/checkpoints"


@dataclass
class Undisturbed:
    """A run on two nodes that nothing befell, and the way to start another like it."""

    cluster: Cluster
    steps: int
    recipe: str
    run: Path

    @classmethod
    def of(cls, cluster: Cluster, folder: Path, steps: int, **env: str) -> "Undisturbed":
        """Makes one."""
        run = cls(cluster, steps, align_recipe(folder, steps), folder / "runs/tiny")
        run.again(folder, **env).succeeded()
        return run

    def again(self, folder: Path, *flags: str, **env: str) -> Job:
        """The same run in another folder."""
        arguments = (self.recipe, f"runs={folder}/runs")
        flags = ("--nodes=2", "--time=60", SIGNAL, *flags)
        return Job.submit(
            self.cluster, "phase.sh", *arguments, flags=flags, **{"PIECES": "st_align", **env}
        )

    def check(self, job: Job, folder: Path) -> None:
        """That a job has ended as this one did."""
        job.succeeded()
        assert same_weights(folder / "runs/tiny", self.run)
        summary = json.loads((folder / "runs/tiny/st_align/summary.json").read_text())
        assert summary["state"] == "finished" and summary["steps"] == self.steps
        assert "finished: " in job.last_line


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Under torchrun, whose run must be that of srun to the last bit."""
    return Undisturbed.of(cluster, tmp_path_factory.mktemp("short"), STEPS, LAUNCHER="torchrun")


@pytest.fixture(scope="module")
def longer(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed.of(cluster, tmp_path_factory.mktemp("long"), LONG)


@pytest.fixture(autouse=True)
def whole_cluster(cluster: Cluster) -> Iterator[None]:
    """Every node works again after each test."""
    yield
    for name in cluster.names:
        if cluster.state(name) not in ("idle", "comp"):
            cluster.revive(name)


def newest_checkpoint(folder: Path) -> int:
    found = [int(each.name[5:]) for each in (folder / CHECKPOINTS).glob("step-*")]
    return max(found, default=0)


def test_a_job_that_suffers_everything_ends_as_if_nothing_had_happened(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    job = undisturbed.again(tmp_path)
    job.wait_for_step(5)
    job.signal("USR1")
    job.wait_for_step(1, attempt=1)
    assert job.first_step(1) == stopped_at(job, 0) + 1  # a stop repeats nothing
    assert somebody_more_important_comes(job) == "COMPLETED"
    job.wait_for_step(1, attempt=2)
    assert job.first_step(2) == stopped_at(job, 1) + 1
    job.wait_for_step(job.first_step(2) + 20, attempt=2)
    job.cluster.crash("n2")
    saved = newest_checkpoint(tmp_path)
    job.wait_for_step(1, attempt=3)
    assert job.first_step(3) >= saved + 1 > job.first_step(2)
    assert "n2" not in job.fields["NodeList"]
    job.cluster.boot("n2")
    job.cluster.restart_controller(3.0)
    undisturbed.check(job, tmp_path)
    assert job.attempt == 3


def somebody_more_important_comes(job: Job) -> str:
    """A job of the partition that preempts takes all nodes; how it ended."""
    flags = ("--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null")
    number = job.cluster.run("sbatch", "--parsable", *flags, "--wrap=true").strip()
    other = Job(job.cluster, number)
    return other.end()


def stopped_at(job: Job, attempt: int) -> int:
    """The step at which an attempt stopped in good order."""
    said = re.findall(r"stopped \(.*\) at step (\d+)", job.words_of(attempt))
    return int(said[-1])


def lose_slurmd(job: Job) -> None:
    job.cluster.kill_slurmd("n2")


def lose_the_link(job: Job) -> None:
    job.cluster.link("n2", "down")


def lose_the_batch_host(job: Job) -> None:
    job.cluster.crash(job.fields["BatchHost"])


@pytest.mark.by_hand
def test_a_job_goes_on_after_the_limit_of_its_time(longer: Undisturbed, tmp_path: Path) -> None:
    job = longer.again(tmp_path)
    job.wait_for_step(5)
    minutes = int(job.fields["RunTime"].split(":")[1])
    limit = ("scontrol", "update", f"JobId={job.number}")
    job.cluster.run(*limit, f"TimeLimit={minutes + 2}")  # of all attempts, until told otherwise
    job.wait_for_words("the time of this allocation is nearly up")
    job.wait_for_words("requeued: st_align stopped: the file ")
    job.cluster.run(*limit, "TimeLimit=60")
    job.wait_for_step(1, attempt=1)
    assert job.first_step(1) == stopped_at(job, 0) + 1
    longer.check(job, tmp_path)


@pytest.mark.by_hand
@pytest.mark.parametrize("lose", [lose_slurmd, lose_the_link, lose_the_batch_host])
def test_a_job_that_loses_a_node_ends_as_if_nothing_had_happened(
    lose: Callable[[Job], None], longer: Undisturbed, tmp_path: Path
) -> None:
    job = longer.again(tmp_path)
    job.wait_for_step(35)
    lose(job)
    saved = newest_checkpoint(tmp_path)
    job.wait_for_step(1, attempt=1)
    assert job.first_step(1) >= saved + 1 > 10
    longer.check(job, tmp_path)


@pytest.mark.by_hand
def test_ranks_that_notice_a_lost_node_before_slurm_does_are_no_fault_of_the_job(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    undisturbed.cluster.slurmd_timeout(60)
    try:
        job = undisturbed.again(tmp_path)
        job.wait_for_step(1)
        job.cluster.crash("n2")
        job.wait_for_words("no sign of life")
        undisturbed.check(job, tmp_path)
    finally:
        undisturbed.cluster.slurmd_timeout(10)


@pytest.mark.by_hand
def test_a_job_goes_on_with_as_many_nodes_as_are_left(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    cluster = undisturbed.cluster
    cluster.run("scontrol", "update", "NodeName=n3", "State=DRAIN", "Reason=test")
    try:
        job = undisturbed.again(tmp_path, "--nodes=1-2")
        job.wait_for_step(STEPS // 4)
        cluster.crash("n2")
        job.succeeded()
    finally:
        cluster.run("scontrol", "update", "NodeName=n3", "State=RESUME")
    summary = json.loads((tmp_path / "runs/tiny/st_align/summary.json").read_text())
    whole = json.loads((undisturbed.run / "st_align/summary.json").read_text())
    assert (summary["ranks"], whole["ranks"]) == (1, 2)
    for count in ("steps", "records_seen", "records_skipped"):
        assert summary[count] == whole[count]
    losses = [each["validation"]["end"]["loss"] for each in (summary, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # sums are rounded in another order
