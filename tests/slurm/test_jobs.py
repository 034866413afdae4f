"""The job scripts on a real Slurm: whole runs, and what happens when they are disturbed."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY, require_system
from tests.slurm.cluster import Cluster
from tests.tiny import write_recipe

pytestmark = pytest.mark.slurm

SCRIPTS = sorted((REPOSITORY / "slurm").glob("*.sh"))
JOBS = [each for each in SCRIPTS if "#SBATCH" in each.read_text()]
ON_CPUS = {"GPUS_PER_NODE": "0", "HEALTH": "0", "EIM_THREADS": "1"}


def submit(
    cluster: Cluster, script: str, *arguments: str, flags: tuple[str, ...] = (), **env: str
) -> str:
    """The id of a job on CPU nodes."""
    given = ("--parsable", "--gpus-per-node=0", *flags)
    return cluster.run(
        "sbatch", *given, f"slurm/{script}", *arguments, **{**ON_CPUS, **env}
    ).strip()


def ended(cluster: Cluster, job: str, seconds: float = 240) -> dict[str, str]:
    """The job's fields once it is over."""
    over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
    cluster.wait_for(f"the end of job {job}", lambda: cluster.job(job)["JobState"] in over, seconds)
    return cluster.job(job)


def log_of(fields: dict[str, str]) -> str:
    return Path(fields["StdOut"]).read_text(errors="replace")


@pytest.fixture
def recipe(tmp_path: Path) -> list[str]:
    """Arguments of a run that takes seconds."""
    return [str(write_recipe(tmp_path, ds_config="zero3")), f"runs={tmp_path / 'runs'}"]


def test_a_dry_run_says_what_would_run_and_needs_no_slurm() -> None:
    done = subprocess.run(
        ["bash", "slurm/train_lavin.sh", "quickstart", "llm_tune.lr=1e-3", "--dry-run"],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "SCRATCH": "/tmp"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = done.stdout.splitlines()
    pieces = ["job.py", "encoder_adapt", "st_align", "llm_tune", "evaluate", "report"]
    assert len(lines) == len(pieces)
    for line, piece in zip(lines, pieces, strict=True):
        assert f"stages/{piece}" in line and "recipe=quickstart" in line
        assert "llm_tune.lr=1e-3" in line


def test_a_word_that_is_not_known_is_one_line() -> None:
    done = subprocess.run(
        ["bash", "slurm/train_lavin.sh", "--dryrun"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--dryrun: not known" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", JOBS, ids=lambda path: path.stem)
def test_slurm_takes_every_script(cluster: Cluster, script: Path) -> None:
    cluster.run("sbatch", "--test-only", "--gpus-per-node=0", f"slurm/{script.name}")


def test_a_whole_run_on_two_nodes(cluster: Cluster, recipe: list[str], tmp_path: Path) -> None:
    flags = ("--nodes=2", f"--output={tmp_path}/job-%j.out")
    fields = ended(cluster, submit(cluster, "train_clipcap.sh", *recipe, flags=flags))
    log = log_of(fields)
    assert fields["JobState"] == "COMPLETED", log[-3000:]
    for phase in ("encoder_adapt", "st_align", "llm_tune"):
        summary = json.loads((tmp_path / "runs" / "tiny" / phase / "summary.json").read_text())
        assert summary["state"] == "finished" and summary["ranks"] == 2
    assert (tmp_path / "runs" / "tiny" / "evaluate" / "test" / "metrics.json").is_file()
    assert "finished: " in log.splitlines()[-1]


def test_shellcheck_finds_nothing() -> None:
    require_system("shellcheck")
    done = subprocess.run(["shellcheck", *map(str, SCRIPTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
