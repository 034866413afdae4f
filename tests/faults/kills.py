"""Kills a real run at random moments until it is finished, and compares it with an undisturbed one.

Knows the command line, the lines that a run says, its exports, summaries and TensorBoard; nothing
of what a checkpoint looks like. The moments follow from a seed as far as a machine allows it.
"""

import json
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.config import PHASES
from pipeline.data.index import load_index
from pipeline.data.manifest import load_manifest
from tests.faults.processes import Launch
from tests.tiny import TIGHT_ZERO3, write_recipe

RANKS = 2
CHECKPOINT_EVERY = 3  # steps
COUNTS = (
    *("state", "steps", "steps_skipped", "records_seen", "records_skipped", "records_by_set"),
    *("texts_cut", "trained_parameters", "train_loss_end", "validation", "exported", "ranks"),
)  # of a summary: all but times and what the disk did
_SCALARS = ("train/", "lr/", "val/", "data/records_skipped", "data/skipped/", "data/texts_cut")
_STEP = re.compile(rf"^({'|'.join(PHASES)}) +step +(\d+)/(\d+)")
_LAUNCH_SECONDS = 400.0
_END_SECONDS = 90.0  # for the others, when one of them was killed

VICTIMS = ("rank 0", "rank 1", "all ranks", "launcher", "everything")
MOMENTS = ("start", "step", "checkpoint")


@dataclass
class Kill:
    """One kill and what became of the launch; a line of the log."""

    number: int
    moment: str  # what was waited for: the start, a step, or a step after which a checkpoint is due
    victim: str
    delay: float  # seconds after that moment
    phase: str = ""  # of the last step that was said before the kill; "" where there was none
    step: int = 0
    killed: int = 0  # processes
    first: str = ""  # the first step of this launch
    to_first_step: float | None = None  # seconds
    rest: str = ""  # how the other processes ended


@dataclass
class Position:
    """Where in a run, as its lines say: the number of a step among all steps of all phases."""

    order: dict[tuple[str, int], int]
    checkpoints: list[int] = field(default_factory=list)  # steps after which one is due

    @classmethod
    def of(cls, launch: Launch) -> "Position":
        """From the lines of an undisturbed run."""
        steps = [(found[1], int(found[2]), int(found[3])) for found in _steps(launch)]
        order = {(phase, step): number for number, (phase, step, _) in enumerate(steps)}
        due = [
            number
            for number, (_, step, last) in enumerate(steps)
            if step % CHECKPOINT_EVERY == 0 and step < last
        ]
        return cls(order, due)


def prepare(folder: Path, *, epochs: int) -> Path:
    """Writes a recipe of three phases with `epochs` * 4 steps each; returns its path."""
    tight = folder / "tight.json"
    tight.write_text(json.dumps(TIGHT_ZERO3))
    changes: dict[str, Any] = {"data__workers": 1, "data__max_bad_fraction": 0.2}
    for phase in PHASES:
        changes |= {
            f"{phase}__epochs": epochs,
            f"{phase}__checkpoint_every": CHECKPOINT_EVERY,
            f"{phase}__eval_every": 5,
        }
    changes["llm_tune__ema"] = 0.5  # so that the last validation is of other weights
    half = {"train": ["st"], "epochs": epochs / 2}
    changes["llm_tune__segments"] = [half, {**half, "train": ["st", "llm"]}]
    return write_recipe(folder, ds_config=str(tight), **changes)


def undisturbed(folder: Path, recipe: Path) -> tuple[Path, Position]:
    """Shards with one unusable image, small weights, and a run of all phases in one launch."""
    made = _finish(["stages/prepare.py", f"recipe={recipe}"], ranks=1)
    assert not made.process.returncode, made.output[-5000:]
    _damage_one_image(folder / "data" / "train")
    launch = _finish(["stages/llm_tune.py", *arguments(folder, recipe, "whole")], ranks=RANKS)
    assert launch.process.returncode == 0, launch.output[-5000:]
    return folder / "whole" / "run", Position.of(launch)


def arguments(folder: Path, recipe: Path, name: str) -> list[str]:
    """The command line of one of the two runs; they share shards and weights, nothing else."""
    return [f"recipe={recipe}", f"runs={folder / name}", "name=run"]


def killed_until_finished(
    folder: Path, recipe: Path, position: Position, *, kills: int, seed: int
) -> Iterator[Kill]:
    """Starts and kills the run `kills` times, then lets it end; it lies in `folder`/killed/run."""
    chance = random.Random(seed)
    command = ["stages/llm_tune.py", *arguments(folder, recipe, "killed")]
    last = len(position.order) - 2  # after the last step it may be over too soon
    started = 15.0  # seconds until the first step, as the launch before took them
    for number, aim in enumerate(sorted(chance.randint(0, last) for _ in range(kills)), start=1):
        moment = chance.choices(MOMENTS, (1, 2, 2))[0]
        victim = chance.choice(VICTIMS)
        if moment == "checkpoint":
            aim = min((each for each in position.checkpoints if each >= aim), default=aim)
        longest = {"start": started, "step": 0.4, "checkpoint": 0.25}[moment]
        delay = chance.uniform(0, longest)
        kill = Kill(number, moment, victim, round(delay, 3))
        orphaned = chance.uniform(0, 1.5)
        launch = Launch.start(command[0], command[1:], ranks=RANKS)
        began = time.monotonic()
        if moment != "start":
            _wait_for(lambda launch=launch, aim=aim: _at(launch, position) >= aim, launch)
        time.sleep(delay)
        _strike(launch, kill, orphaned)
        steps = [(at, found) for at, line in launch.lines if (found := _STEP.match(line))]
        if steps:
            kill.first = f"{steps[0][1][1]} {steps[0][1][2]}"
            kill.to_first_step = round(steps[0][0] - began, 1)
            started = kill.to_first_step
        yield kill
    launch = _finish(command, ranks=RANKS)
    assert launch.process.returncode == 0, launch.output[-5000:]


def differences(whole: Path, killed: Path, phases: Sequence[str] = PHASES) -> list[str]:
    """What a disturbed run ended with that another did not; empty where all is the same."""
    found = []
    for phase in phases:
        first, second = (run / phase for run in (whole, killed))
        found += [f"{phase}: {each}" for each in _weights(first, second)]
        mine, theirs = (json.loads((each / "summary.json").read_text()) for each in (first, second))
        found += [
            f"{phase}: summary {key}: {mine[key]} and {theirs[key]}"
            for key in COUNTS
            if mine[key] != theirs[key]
        ]
        found += [f"{phase}: {each}" for each in _curves(first, second)]
    return found


def _weights(whole: Path, killed: Path) -> Iterator[str]:
    mine, theirs = (load_file(each / "export" / "weights.safetensors") for each in (whole, killed))
    if mine.keys() != theirs.keys():
        yield "the exports hold tensors of different names"
        return
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    if different:
        yield f"{len(different)} of {len(mine)} tensors differ, {different[0]} first"


def _curves(whole: Path, killed: Path) -> Iterator[str]:
    """As TensorBoard shows them: every step once, with the same values."""
    mine, theirs = (_scalars(each / "tensorboard") for each in (whole, killed))
    if mine.keys() != theirs.keys():
        yield f"curves: {sorted(mine.keys() ^ theirs.keys())} in one of them only"
    for name in mine.keys() & theirs.keys():
        steps = [step for step, _ in theirs[name]]
        if steps != sorted(set(steps)):
            yield f"curve {name} has steps twice, or not in order: {steps}"
        elif mine[name] != theirs[name]:
            missing = sorted({step for step, _ in mine[name]} - set(steps))
            yield f"curve {name} is another; steps missing: {missing}"


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    return {
        name: [(event.step, event.value) for event in board.Scalars(name)]
        for name in board.Tags()["scalars"]
        if name.partition("/")[2].startswith(_SCALARS)
    }


def _strike(launch: Launch, kill: Kill, orphaned: float) -> None:
    """The kill itself; what is left ends by itself, or orphans of the launcher after a while."""
    at = _last_step(launch)
    kill.killed = len(launch.kill(_chosen(launch, kill.victim)))
    if at is not None:
        kill.phase, kill.step = at
    if kill.victim == "launcher":
        time.sleep(orphaned)
        left = launch.kill(launch.processes())
        kill.rest = f"{len(left)} orphans, killed after {orphaned:.2f} s"
    struck = time.monotonic()
    launch.end(_END_SECONDS)
    took = time.monotonic() - struck
    kill.rest = kill.rest or f"ended after {took:.1f} s"
    if took >= _END_SECONDS:
        kill.rest = f"killed after {took:.0f} s"


def _chosen(launch: Launch, victim: str) -> list[int]:
    """The processes that a victim's name means; all of them before there are any ranks."""
    if victim == "launcher":
        return launch.launchers()
    ranks = {} if victim == "everything" else launch.ranks()
    named = [pid for rank, pid in ranks.items() if victim in (f"rank {rank}", "all ranks")]
    return named or launch.processes()


def _finish(command: list[str], *, ranks: int) -> Launch:
    launch = Launch.start(command[0], command[1:], ranks=ranks)
    launch.end(_LAUNCH_SECONDS)
    return launch


def _wait_for(condition: Callable[[], bool], launch: Launch) -> None:
    """Until the condition holds, or the launch is over."""
    end = time.monotonic() + _LAUNCH_SECONDS
    while launch.process.poll() is None and not condition() and time.monotonic() < end:
        time.sleep(0.01)


def _at(launch: Launch, position: Position) -> int:
    """The number of the last step that was said; -1 before the first one."""
    step = _last_step(launch)
    return -1 if step is None else position.order[step]


def _last_step(launch: Launch) -> tuple[str, int] | None:
    found = _steps(launch)
    return (found[-1][1], int(found[-1][2])) if found else None


def _steps(launch: Launch) -> list[re.Match[str]]:
    return [found for _, line in list(launch.lines) if (found := _STEP.match(line))]


def _damage_one_image(split: Path) -> None:
    """Zeros over the first image: the counts of what is skipped must survive kills too."""
    manifest = load_manifest(split)
    index = load_index(manifest, 0)
    with manifest.path(0).open("r+b") as file:
        file.seek(int(index.image_offset[0]))
        file.write(bytes(int(index.image_size[0])))
