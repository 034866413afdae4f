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


def dry_run(script: str, *words: str, cwd: Path = REPOSITORY, **env: str) -> list[str]:
    """What a script says that it would do, without a Slurm."""
    done = subprocess.run(
        ["bash", os.path.relpath(REPOSITORY / "slurm" / script, cwd), *words, "--dry-run"],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "SCRATCH": "/tmp", **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.splitlines()


def test_a_dry_run_says_what_would_run_and_needs_no_slurm() -> None:
    submitted, *lines = dry_run("train_lavin.sh", "quickstart", "llm.path=/a b", NODES="2")
    given = "quickstart llm.path=/a\\ b"
    assert submitted == f"sbatch --nodes=2 slurm/train_lavin.sh {given}"
    pieces = ["job.py", "encoder_adapt", "st_align", "llm_tune", "evaluate", "report"]
    assert len(lines) == len(pieces)
    for line, piece in zip(lines, pieces, strict=True):
        assert f"stages/{piece}" in line
        assert line.endswith(" recipe=quickstart runs=runs llm.path=/a\\ b")
    for line in lines[1:-1]:
        assert "srun --nodes=2 --ntasks=16 --ntasks-per-node=8 " in line  # 8 GPUs, by its header


def test_scripts_are_started_from_any_folder(tmp_path: Path) -> None:
    for folder in (REPOSITORY / "slurm", REPOSITORY.parent, tmp_path):
        assert dry_run("train_clipcap.sh", cwd=folder)[0] == "sbatch slurm/train_clipcap.sh"


@pytest.mark.parametrize(("given", "ranks"), [("a100:4", 4), ("2", 2), ("0", 1)])
def test_gpus_of_a_node_are_its_ranks(given: str, ranks: int) -> None:
    submitted, line = dry_run("phase.sh", PIECES="st_align", GPUS_PER_NODE=given)
    assert f"--gpus-per-node={given}" in submitted and f"--ntasks-per-node={ranks} " in line


def test_a_container_sees_what_lies_outside_of_the_repository() -> None:
    env = {"PIECES": "st_align", "RUNS": "/shared/runs", "CONTAINER_MOUNTS": "/data:/data"}
    for image in ("eim.sif", "nvcr.io/eim"):
        line = dry_run("phase.sh", CONTAINER=image, **env)[-1].replace("\\,", ",")
        assert f"{REPOSITORY}:{REPOSITORY},/shared/runs:/shared/runs,/tmp:/tmp,/data:/data" in line


def test_a_dry_run_of_a_chain_is_one_line_a_job() -> None:
    lines = dry_run("submit.sh", "quickstart", NODES_llm_tune="4")
    ends = ["shards encoder_adapt", "st_align", "llm_tune", "evaluate report"]
    pieces = [line.partition(",PIECES=")[2].replace("\\ ", " ") for line in lines]
    assert all(each.startswith(f"{end} ") for each, end in zip(pieces, ends, strict=True))
    assert all(line.endswith("slurm/phase.sh quickstart") for line in lines)
    assert ["--nodes=4" in line for line in lines] == [False, False, True, False]


def test_within_an_allocation_scripts_are_submitted_as_anywhere(tmp_path: Path) -> None:
    """As in a notebook's shell, which is a job of its own."""
    inside = {"SLURM_JOB_ID": "5", "SLURM_SUBMIT_DIR": str(tmp_path)}
    for script, more in (("train_lavin.sh", 6), ("submit.sh", 3), ("tensorboard.sh", 0)):
        words = ["quickstart"] if script == "submit.sh" else []
        submitted, *lines = dry_run(script, *words, **inside)
        assert submitted.startswith("sbatch ") and len(lines) == more


@pytest.mark.parametrize(("works", "cancelled"), [(0, []), (2, ["2", "1"])])
def test_a_chain_that_cannot_be_submitted_leaves_nothing(
    tmp_path: Path, works: int, cancelled: list[str]
) -> None:
    calls = tmp_path / "calls"
    calls.touch()
    stub = f"echo ${{0##*/}} $@ >> {calls}\n"
    count = f"number=$(grep -c ^sbatch {calls})\n((number <= {works})) && echo $number\n"
    for name, lines in (("sbatch", stub + count), ("scancel", stub + "(($#))\n")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines}")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "slurm/submit.sh", "quickstart"],
        cwd=REPOSITORY,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    said = calls.read_text().splitlines()
    assert done.returncode == 1 and len([each for each in said if "sbatch" in each]) == works + 1
    asked = [word for line in said if line.startswith("scancel") for word in line.split()[1:]]
    assert sorted(asked) == sorted(cancelled)


def test_a_word_that_is_not_known_is_one_line() -> None:
    done = subprocess.run(
        ["bash", "slurm/train_lavin.sh", "--dryrun"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--dryrun: not known" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", JOBS, ids=lambda path: path.stem)
def test_slurm_takes_every_script(cluster: Cluster, script: Path) -> None:
    cluster.run("sbatch", "--test-only", f"slurm/{script.name}")


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


@pytest.mark.parametrize("launcher", ["srun", "torchrun", "deepspeed"])
def test_launchers_with_two_ranks_on_each_of_two_nodes(
    cluster: Cluster, tmp_path: Path, launcher: str
) -> None:
    arguments = [align_recipe(tmp_path, 4), f"runs={tmp_path}/runs"]
    env = {"LAUNCHER": launcher, "PIECES": "st_align", "CPU_RANKS_PER_NODE": "2", "HEALTH": "1"}
    job = Job.submit(cluster, "phase.sh", *arguments, flags=("--nodes=2",), **env)
    assert "all nodes are well" in job.succeeded() and job.attempt == 0
    summary = json.loads((tmp_path / "runs/tiny/st_align/summary.json").read_text())
    assert summary["state"] == "finished" and summary["ranks"] == 4


def test_of_two_jobs_on_one_run_the_second_ends_and_says_whose_it_is(
    cluster: Cluster, tmp_path: Path
) -> None:
    arguments = [align_recipe(tmp_path, 10**4), f"runs={tmp_path}/runs"]
    first = Job.submit(cluster, "phase.sh", *arguments, PIECES="st_align")
    first.wait_for_step(1)
    second = Job.submit(cluster, "phase.sh", *arguments, PIECES="st_align")
    assert second.end() == "FAILED" and second.fields["ExitCode"] == "2:0", second.log
    assert f"job {first.number}" in second.last_line and second.attempt == 0
    (tmp_path / "runs/tiny/STOP").touch()
    assert first.end() == "FAILED" and first.fields["ExitCode"] == "75:0", first.log


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
