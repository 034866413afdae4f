"""The job scripts on a real Slurm: whole runs, in one job and in several, under each launcher."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from pipeline.data.index import load_index
from pipeline.data.manifest import load_manifest
from tests.helpers import REPOSITORY, require_system
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import Job, align_recipe
from tests.small import build
from tests.tiny import write_recipe

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

SCRIPTS = sorted((REPOSITORY / "slurm").glob("*.sh"))
JOBS = [each for each in SCRIPTS if "#SBATCH" in each.read_text()]


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


def test_a_whole_run_on_two_nodes_which_is_not_done_twice(cluster: Cluster, tmp_path: Path) -> None:
    recipe = build(tmp_path, evaluate__metrics=["cider"])
    arguments = [str(recipe), f"runs={tmp_path}/runs"]
    own_disk = {"STAGE_SHARDS": "1", "SCRATCH": "/dev/shm"}  # what a node of the box has alone
    job = Job.submit(cluster, "train_clipcap.sh", *arguments, flags=("--nodes=2",), **own_disk)
    job.succeeded()
    copies = [cluster.run("find", "/dev/shm", "-name", "*.tar", on=name) for name in cluster.names]
    assert len([each for each in copies if each]) == 2, copies
    run = tmp_path / "runs/tiny"
    for phase in ("encoder_adapt", "st_align", "llm_tune"):
        summary = json.loads((run / phase / "summary.json").read_text())
        assert summary["state"] == "finished" and summary["ranks"] == 2
        assert not summary.get("shards_unstaged")
    scores = run / "evaluate/test/metrics.json"
    written = scores.stat().st_mtime_ns
    assert "finished: " in job.last_line
    again = Job.submit(cluster, "train_clipcap.sh", *arguments, flags=("--nodes=2",), **own_disk)
    log = again.succeeded()
    for piece in ("encoder_adapt", "st_align", "llm_tune", "evaluate"):
        assert f"{piece} is done already" in log
    assert scores.stat().st_mtime_ns == written


def test_the_deepspeed_launcher_in_a_job(cluster: Cluster, tmp_path: Path) -> None:
    arguments = [align_recipe(tmp_path, 4), f"runs={tmp_path}/runs"]
    env = {"LAUNCHER": "deepspeed", "PIECES": "st_align"}
    Job.submit(cluster, "phase.sh", *arguments, flags=("--nodes=2",), **env).succeeded()
    summary = json.loads((tmp_path / "runs/tiny/st_align/summary.json").read_text())
    assert summary["state"] == "finished" and summary["ranks"] == 2


def test_corrupt_shards_end_the_job_with_the_reason(cluster: Cluster, tmp_path: Path) -> None:
    arguments = [align_recipe(tmp_path, 4), f"runs={tmp_path}/runs"]
    damage_images(tmp_path / "data/train")
    flags = ("--nodes=2",)
    job = Job.submit(cluster, "phase.sh", *arguments, flags=flags, PIECES="st_align")
    assert job.end() == "FAILED", job.log
    assert job.fields["ExitCode"] == "2:0" and job.attempt == 0
    for place in (job.last_line, job.comment):
        assert "max_bad_fraction" in place, job.log[-3000:]


def damage_images(split: Path) -> None:
    """Zeros over every second image of a split."""
    manifest = load_manifest(split)
    for number in range(len(manifest.shards)):
        index = load_index(manifest, number)
        with manifest.path(number).open("r+b") as file:
            for start, size in zip(index.image_offset[::2], index.image_size[::2], strict=True):
                file.seek(int(start))
                file.write(bytes(int(size)))


def test_a_chain_starts_a_phase_when_the_one_before_is_finished_not_when_it_is_stopped(
    cluster: Cluster, tmp_path: Path
) -> None:
    changes = {"encoder_adapt__enabled": False, "evaluate__metrics": [], "llm_tune__segments": []}
    changes |= {"st_align__epochs": 15, "st_align__checkpoint_every": 50}
    recipe = build(tmp_path, **changes)
    chain = Job.submit_chain(cluster, str(recipe), f"runs={tmp_path}/runs")
    _, align, tune, evaluate = chain
    align.wait_for_step(3)
    align.signal("USR1")
    align.wait_for_attempt(1)
    assert tune.fields["JobState"] == "PENDING" and tune.fields["Reason"] == "Dependency"
    evaluate.succeeded()
    assert [each.attempt for each in chain] == [0, 1, 0, 0]
    assert (tmp_path / "runs/tiny/evaluate/test/metrics.json").is_file()


def test_an_array_of_jobs_makes_the_shards(cluster: Cluster, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    job = Job.submit(cluster, "prepare.sh", str(recipe), flags=("--array=0-1",))
    cluster.wait_for("both parts", lambda: not cluster.run("squeue", "-h", "-j", job.number), 120)
    assert "COMPLETED" in {job.fields["JobState"]}, job.log
    for split, records in (("train", 40), ("val", 10), ("test", 10)):
        assert sum(load_manifest(tmp_path / "data" / split).sizes) == records


def test_shellcheck_finds_nothing() -> None:
    require_system("shellcheck")
    done = subprocess.run(["shellcheck", *map(str, SCRIPTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
