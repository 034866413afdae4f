"""How a job ends for each way in which its stage may: on a real Slurm, with a stage of a few lines.

The interpreter that the scripts are told to use (PYTHON) starts those lines in place of st_align.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.cluster import PARTITION, Cluster
from tests.slurm.jobs import Job
from tests.tiny import write_recipe

pytestmark = pytest.mark.slurm

STARTED = "the stage is there"
FINISHED = "echo 0 finished > $EIM_OUTCOME_FILE"
STOP = "echo 0 stopped the file $EIM_STOP_FILE > $EIM_OUTCOME_FILE"
UNTIL_STOPPED = f"echo {STARTED}; until [ -e $EIM_STOP_FILE ]; do sleep 0.1; done; {STOP}"
RESTARTED = "[ $SLURM_RESTART_COUNT != 0 ]"


@dataclass
class Stage:
    """A recipe whose st_align does as it is told."""

    cluster: Cluster
    folder: Path

    @property
    def a_step(self) -> str:
        """Leaves what looks like the checkpoint of one more step than the attempt before."""
        checkpoints = self.folder / "runs/tiny/st_align/checkpoints"
        return f"mkdir -p {checkpoints}/step-$(( ${{SLURM_RESTART_COUNT:-0}} + 1 ))"

    def arguments(self) -> list[str]:
        off = {"encoder_adapt__enabled": False}
        return [str(write_recipe(self.folder, **off)), f"runs={self.folder}/runs"]

    def python(self, lines: str, stage: str = "st_align") -> str:
        """An interpreter for the scripts."""
        path = self.folder / f"python-{stage}"
        lines = f"case $1 in stages/{stage}.py)\n{lines}\nexit;; esac"
        path.write_text(f'#!/bin/bash\n{lines}\nexec {sys.executable} "$@"\n')
        path.chmod(0o755)
        return str(path)

    def job(self, lines: str, *more: str, flags: tuple[str, ...] = (), **env: str) -> Job:
        env = {"PYTHON": self.python(lines), "PIECES": "st_align", **env}
        return Job.submit(self.cluster, "phase.sh", *self.arguments(), *more, flags=flags, **env)


@pytest.fixture
def stage(cluster: Cluster, tmp_path: Path) -> Stage:
    return Stage(cluster, tmp_path)


def failed(job: Job, code: int, reason: str) -> None:
    """The job has failed so, and says so where people look."""
    assert job.end() == "FAILED", job.log
    assert job.fields["ExitCode"] == f"{code}:0"
    assert reason in job.last_line and f"(exit code {code})" in job.last_line, job.log
    assert job.comment.startswith(f"exit code {code}: ") and reason in job.comment


def test_a_recipe_that_is_wrong_ends_the_job_at_once(stage: Stage) -> None:
    job = stage.job(FINISHED, "st_align.lr=fast")
    failed(job, 2, "st_align.lr: Value 'fast'")
    assert job.attempt == 0


def test_what_fails_without_getting_further_is_not_tried_again(stage: Stage) -> None:
    job = stage.job("kill -9 $$")
    failed(job, 1, "nothing was done since the last start")
    assert "exit code 137" in job.last_line and job.attempt == 0


def test_what_fails_again_and_again_is_tried_so_often(stage: Stage) -> None:
    job = stage.job(f"{stage.a_step}; exit 3", MAX_RESTARTS="1")
    failed(job, 1, "MAX_RESTARTS=1 is reached")
    assert job.attempt == 1


def test_a_stop_for_time_goes_on_by_itself_where_something_was_done(stage: Stage) -> None:
    lines = f"{RESTARTED} && {{ {FINISHED}; exit; }}; {stage.a_step}; {UNTIL_STOPPED}"
    job = stage.job(lines, flags=("--time=2", "--signal=B:USR1@90"))
    job.wait_for_words("the time of this allocation is nearly up")
    job.succeeded()
    assert job.attempt == 1


def test_a_stop_for_time_before_the_first_step_would_go_on_for_ever(stage: Stage) -> None:
    job = stage.job(UNTIL_STOPPED)
    job.wait_for_words(STARTED)
    job.signal("USR1")
    failed(job, 1, "nothing was done since the last start")


def test_a_preempted_job_comes_back_even_if_it_had_done_nothing(stage: Stage) -> None:
    job = stage.job(f"{RESTARTED} && {{ {FINISHED}; exit; }}; {UNTIL_STOPPED}")
    job.wait_for_words(STARTED)
    job.signal("TERM")
    job.succeeded()
    assert job.attempt == 1


def test_a_cancelled_job_does_not_come_back(stage: Stage) -> None:
    stopped = "echo 0 stopped SIGTERM at rank 0 > $EIM_OUTCOME_FILE; exit"
    job = stage.job(f"trap '{stopped}' TERM; echo {STARTED}; while :; do sleep 0.1; done")
    job.wait_for_words(STARTED)
    job.cluster.run("scancel", job.number)
    assert job.end() == "CANCELLED", job.log
    assert "requeued" not in job.log


def test_a_job_that_is_preempted_while_its_shards_are_looked_at_comes_back(stage: Stage) -> None:
    there = f"{RESTARTED} && exit 0; echo {STARTED}; sleep 60 & wait"
    python = stage.python(f"trap 'exit 143' TERM; {there}", stage="job")
    job = stage.job(FINISHED, PYTHON=python, PIECES="shards")
    job.wait_for_words(STARTED)
    job.cluster.run("scancel", "--signal=TERM", "--full", job.number)
    job.succeeded()
    assert job.attempt == 1


@pytest.mark.by_hand
@pytest.mark.timeout(300)
def test_what_is_never_done_within_the_time_ends_the_job_with_the_reason(stage: Stage) -> None:
    stopped = "echo 0 stopped SIGTERM at rank 0 > $EIM_OUTCOME_FILE; exit"
    lines = f"trap '{stopped}' TERM; while :; do sleep 0.1; done"
    job = stage.job(lines, flags=("--time=1", "--signal=B:CONT@1"))
    assert job.end() == "TIMEOUT", job.log
    # A comment on a job that Slurm has ended is refused, so the log alone has the reason.
    job.cluster.wait_for("its last words", lambda: "failed: " in job.log, 30)
    assert "nothing was done since the last start" in job.last_line
    assert job.attempt == 0 and "requeued" not in job.log


@pytest.fixture
def deaf(tmp_path: Path) -> str:
    """A PATH on which scontrol reaches its controller at the third call only."""
    folder = tmp_path / "deaf"
    folder.mkdir()
    path = folder / "scontrol"
    path.write_text(
        f"#!/bin/bash\necho >> {folder}/calls\n[[ $(wc -l < {folder}/calls) -lt 3 ]] && exit 1\n"
        f'exec {shutil.which("scontrol")} "$@"\n'
    )
    path.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}:/usr/sbin:/sbin"


def test_each_task_of_an_array_says_why_it_failed(stage: Stage) -> None:
    """The id of one of them is that of the whole array."""
    flags = ("--array=0-1", f"--output={stage.folder}/%A.%a.out")
    arguments = [*stage.arguments(), "data.workers=many"]
    array = Job.submit(stage.cluster, "prepare.sh", *arguments, flags=flags)
    for task in range(2):
        job = Job(stage.cluster, f"{array.number}_{task}")
        assert job.end() == "FAILED" and job.fields["ExitCode"] == "2:0"
        said = (stage.folder / f"{array.number}.{task}.out").read_text()
        assert "data.workers: Value 'many'" in said.splitlines()[-1], said


def test_what_sbatch_keeps_from_the_job_is_not_kept_from_its_ranks(stage: Stage) -> None:
    lines = f"[ -n $EIM_OUTCOME_FILE ] && {FINISHED}"
    stage.job(lines, SLURM_EXPORT_ENV="NONE").succeeded()


@pytest.mark.parametrize("end", ["requeue late", "fail 1 late", "requeue_without late n3"])
def test_a_script_of_an_older_attempt_leaves_the_job_to_the_newer_one(
    stage: Stage, deaf: str, end: str
) -> None:
    """Also where its node has its network back only while it tries."""
    job = stage.job(UNTIL_STOPPED)
    job.wait_for_words(STARTED)
    job.cluster.run("scontrol", "requeue", job.number)
    job.wait_for("the newer attempt", lambda: STARTED in job.words_of(1))
    ghost = f"source slurm/common.sh; ATTEMPT=0; {end}"
    env = {"SLURM_JOB_ID": job.number, "SLURM_JOB_PARTITION": PARTITION, "PATH": deaf}
    said = job.cluster.run("bash", "-c", f"({ghost}); [ $? = 75 ]", **env)
    assert said.endswith("a newer attempt has the job, this one leaves\n")
    assert job.fields["JobState"] == "RUNNING" and job.attempt == 1 and not job.comment
    job.cluster.run("scancel", job.number)
    assert job.end() == "CANCELLED"


def test_what_the_user_stops_lets_nothing_of_the_chain_start(stage: Stage) -> None:
    stop = f"{stage.folder}/runs/tiny/STOP"
    python = stage.python(f"{stage.a_step}; echo 0 stopped the file {stop} > $EIM_OUTCOME_FILE")
    first, *jobs = Job.submit_chain(stage.cluster, *stage.arguments(), PYTHON=python)
    first.succeeded()
    failed(jobs[0], 75, "submit again to go on")
    assert [each.end() for each in jobs[1:]] == ["CANCELLED", "CANCELLED"]
