"""A run that is asked to stop does so in good order, wherever it is, and goes on as if it had not.

The signals are real, sent by the ranks to themselves at a known place; in one launch, see
`cases_program.py`.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.export_files import ExportTensors
from tests.dist.launch import BIN, free_port
from tests.faults.ranks import STEP, Ended, case, finish, run, small_recipe, start
from tests.helpers import REPOSITORY
from tests.warm import Rank

pytestmark = pytest.mark.faults

STEPS = 8
VALIDATION = "pipeline.callbacks.probes.CaptionProbe.measure"
GENERATION = "pipeline.callbacks.probes.caption_batches"
SAVING = "pipeline.engine.Engine.save"
EXPORT = "pipeline.engine.Engine.trained_tensors"

# name -> (recipe's changes, fault, steps that are done when it stops, words of the reason)
STOPS: dict[str, tuple[list[str], tuple[object, ...], int, str]] = {
    "one": ([], (1, STEP, 3, "SIGTERM"), 3, "SIGTERM at rank 1"),
    "main": ([], (0, STEP, 2, "SIGUSR1"), 2, "SIGUSR1 at rank 0"),
    "all": ([], (None, STEP, 4, "SIGUSR2"), 4, "SIGUSR2 at rank "),
    "first": ([], (1, VALIDATION, 1, "SIGTERM"), 0, "SIGTERM at rank 1"),
    "watching": (["st_align.eval_every=2"], (1, VALIDATION, 3, "SIGTERM"), 4, "SIGTERM"),
    "speaking": (["st_align.sample_images=2"], (1, GENERATION, 2, "SIGTERM"), STEPS, "SIGTERM"),
    "averaged": (["st_align.ema=0.5"], (1, VALIDATION, 2, "SIGTERM"), STEPS, "SIGTERM"),
    "saving": (["st_align.checkpoint_every=3"], (1, SAVING, 1, "SIGTERM"), 3, "SIGTERM"),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """Every stop and its continuation, undisturbed runs to compare with, and a few more."""
    folder = tmp_path_factory.mktemp("stopping")
    recipe = small_recipe(folder)
    cases = [
        # First, while no features are cached yet.
        case([recipe, "name=caching"], fault=(1, "pipeline.assemble.encode_shards", 1, "SIGTERM")),
        case([recipe, "name=caching"]),
    ]
    for name, (changes, fault, _, _) in STOPS.items():
        arguments = [recipe, *changes]
        cases += [
            case([*arguments, f"name={name}"], fault=fault),
            case([*arguments, f"name={name}"]),
        ]
    for name in ("watching", "speaking", "averaged"):
        cases.append(case([recipe, *STOPS[name][0], f"name={name}-whole"]))
    made = [recipe, "make_missing=true"]
    long = [recipe, "name=file", "st_align.epochs=100"]
    cases += [
        case([*made, "name=chain"], stage="llm_tune", fault=(1, EXPORT, 1, "SIGTERM")),
        case([*made, "name=after", "st_align.stop_after=2"], stage="llm_tune"),
        case(long, fault=(1, STEP, 2, "file")),
        case([*long, "st_align.stop_after=1"]),
    ]
    ended = run(folder, cases, ranks=2)
    assert ended.codes == [0, 0], ended.errors[-4000:]
    return folder / "runs", ended


def summaries(output: str, phase: str, run: Path) -> list[str]:
    """The lines that a run's phase ended its starts with."""
    return [each for each in output.splitlines() if f"{run / phase / 'summary.json'}" in each]


@pytest.mark.parametrize("name", STOPS)
def test_a_stop_finishes_the_step_saves_and_says_why(
    stopped: tuple[Path, Ended], name: str
) -> None:
    runs, ended = stopped
    _, _, steps, reason = STOPS[name]
    first, second = summaries(ended.output, "st_align", runs / name)
    assert f"stopped ({reason}" in first and f") at step {steps}:" in first
    assert f"finished at step {STEPS}:" in second
    goes_on = f"goes on from {runs / name / 'st_align' / 'checkpoints'}/step-{steps:06d}"
    assert (goes_on in ended.output) == (steps > 0)


@pytest.mark.parametrize(
    ("name", "whole"),
    [(n, f"{n}-whole" if n in ("watching", "speaking", "averaged") else "caching") for n in STOPS],
)
def test_stopped_and_gone_on_is_as_if_never_stopped(
    stopped: tuple[Path, Ended], name: str, whole: str
) -> None:
    runs, _ = stopped
    mine, theirs = (ExportTensors(runs / n / "st_align" / "export") for n in (name, whole))
    assert all(torch.equal(mine[each], theirs[each]) for each in theirs)
    for tag in ("train/loss", "val/loss"):
        assert curve(runs / name, tag) == curve(runs / whole, tag), tag
    state = [
        json.loads((runs / n / "st_align" / "summary.json").read_text()) for n in (name, whole)
    ]
    for key in ("state", "reason", "steps", "records_seen", "validation", "train_loss_end"):
        assert state[0][key] == state[1][key], key


def curve(run: Path, tag: str) -> list[tuple[int, float]]:
    """As TensorBoard shows it; a step that was written twice is there twice."""
    board = EventAccumulator(str(run / "st_align" / "tensorboard"))
    board.Reload()
    return [(each.step, each.value) for each in board.Scalars(f"st_align/{tag}")]


def test_a_stop_while_features_are_cached_leaves_no_half_made_file(
    stopped: tuple[Path, Ended],
) -> None:
    runs, ended = stopped
    line = next(each for each in ended.output.splitlines() if each.startswith("stopped"))
    assert "SIGTERM at rank 1" in line and "the same command goes on" in line
    assert not list((runs / "features").rglob(".*"))
    assert json.loads((runs / "caching" / "st_align" / "summary.json").read_text())["steps"] == 8


def test_a_stop_between_phases_keeps_the_finished_one_and_starts_no_other(
    stopped: tuple[Path, Ended],
) -> None:
    runs, _ = stopped
    chain = runs / "chain"
    assert json.loads((chain / "st_align" / "summary.json").read_text())["state"] == "finished"
    assert not (chain / "llm_tune").exists()


def test_a_stopped_predecessor_stops_the_chain_in_one_line(stopped: tuple[Path, Ended]) -> None:
    runs, ended = stopped
    assert "llm_tune      is not started: st_align was stopped" in ended.output
    summary = json.loads((runs / "after" / "st_align" / "summary.json").read_text())
    assert (summary["state"], summary["reason"]) == ("stopped", "stop_after=2")
    assert not (runs / "after" / "llm_tune").exists()


def test_the_file_stop_does_the_same_and_the_next_start_removes_it(
    stopped: tuple[Path, Ended],
) -> None:
    runs, ended = stopped
    first, second = summaries(ended.output, "st_align", runs / "file")
    assert f"the file {runs / 'file' / 'STOP'}" in first
    assert "stop_after=1" in second  # it went on, and was not stopped by the old file
    assert f"{runs / 'file' / 'STOP'}: it was there already, and is removed" in ended.output
    assert not (runs / "file" / "STOP").exists()


def test_a_second_signal_ends_all_ranks_at_once_and_the_older_checkpoint_stays(
    tmp_path: Path,
) -> None:
    recipe = small_recipe(tmp_path)
    slow = [recipe, "name=twice", "st_align.epochs=500", "st_align.checkpoint_every=5"]
    checkpoints = tmp_path / "runs" / "twice" / "st_align" / "checkpoints"
    # The rank hangs in a step, so that the first signal cannot be obeyed.
    processes = start(tmp_path, [case(slow, fault=(1, STEP, 7, "hang"))], ranks=2)
    wait_for(lambda: any(checkpoints.glob("step-000005")), processes)
    time.sleep(2)
    processes[1].terminate()
    time.sleep(2.5)
    processes[1].terminate()
    ended = finish(processes, tmp_path, seconds=20)
    assert ended.codes == [143, 143], ended.errors[-3000:]
    assert ended.seconds < 4
    assert "rank 1" in ended.last_line and "second signal (SIGTERM)" in ended.last_line
    assert [each.name for each in checkpoints.glob("step-*")] == ["step-000005"]


LAUNCHERS = {
    # (command, who gets the signal, what the summary says)
    "deepspeed": ("deepspeed --num_gpus 2 --master_port", "command", "the end of the deepspeed"),
    "deepspeed, all": ("deepspeed --num_gpus 2 --master_port", "group", ""),
    "torchrun": ("torchrun --nproc-per-node 2 --master-port", "command", "SIGTERM at rank "),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ending_the_launcher_stops_the_run_in_good_order(tmp_path: Path, launcher: str) -> None:
    recipe = small_recipe(tmp_path)
    command, whom, reason = LAUNCHERS[launcher]
    program, *options = command.split()
    arguments = ["stages/st_align.py", recipe, "name=long", "st_align.epochs=500"]
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "EIM_THREADS": "1"}
    phase, written = tmp_path / "runs" / "long" / "st_align", tmp_path / "output"
    with written.open("w") as output:
        process = subprocess.Popen(
            [str(BIN / program), *options, str(free_port()), *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_for(lambda: re.search(r"step +3/2000", written.read_text()), [process])
        began = time.monotonic()
        if whom == "command":
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGTERM)
        wait_for((phase / "summary.json").exists, [], seconds=20)
        process.wait(20)
        summary = json.loads((phase / "summary.json").read_text())
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    took = time.monotonic() - began
    print(f"{launcher}: {summary['reason']} after {took:.1f} s, exit code {process.returncode}")
    assert summary["state"] == "stopped"
    assert summary["reason"].startswith(reason)
    assert (phase / "checkpoints" / f"step-{summary['steps']:06d}").is_dir()
    assert "error" not in written.read_text().splitlines()[-1]


def _code(process: Rank | subprocess.Popen[bytes]) -> int | None:
    return process.poll() if isinstance(process, subprocess.Popen) else process.exitcode


def wait_for(
    condition: Callable[[], object],
    processes: Sequence[Rank | subprocess.Popen[bytes]],
    seconds: float = 120,
) -> None:
    """Until the condition is true; fails where a process ends before."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        assert all(_code(each) is None for each in processes), "a process ended too early"
        time.sleep(0.1)
