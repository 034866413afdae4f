"""TensorBoard: curves and pictures of a phase, and what came out of a run, under one layout.

The only module that touches TensorBoard. A `Board` exists on every rank and writes on the main one
alone. A phase's tags begin with its name, so that TensorBoard groups them by phase and never draws
a contrastive loss over an LM's. A run has a board of its own beside them, with its recipe as
hparams and what came out in the end.
"""

import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from uuid import uuid4

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import (
    EventFileLoader,
    LegacyEventFileLoader,
)
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.errors import NotFoundError
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import custom_scalars, hparams, image, scalar

from pipeline.config import PHASES
from pipeline.dist import World
from pipeline.recipe_values import Value

FOLDER = "tensorboard"  # of a phase; of a run: what came out of it
FINAL = "final"  # tags of what came out

_EVENTS = "events.out.tfevents.*"  # named by TensorBoard: second, host, process
_VERSION = "brain.Event:2"  # the first event of every file says so
_TICK, _TICKS = 0.05, 40  # two seconds; a clock that is further off is not waited for

# One chart each, of the tags that the patterns match behind a phase's name.
_CHARTS: Mapping[str, tuple[str, ...]] = {
    "loss": ("train/loss", "val/loss"),
    "validation scores": ("val/(?!loss|perplexity|records).*",),
    "learning rates": ("lr/.*",),
    "gradient norm": ("train/grad_norm",),
    "samples a second": ("speed/samples_per_second",),
    "data: waiting and padding": ("data/.*_fraction",),
    "skipped records and steps": ("data/records_skipped", "train/steps_skipped"),
    "memory (GiB)": ("memory/.*",),
}


def layout() -> dict[str, dict[str, list[str | list[str]]]]:
    """TensorBoard's page of custom scalars: the phases in their order, then what came out.

    Every board has all of it: TensorBoard lays several over one another, in the order of names.
    """
    phases: dict[str, dict[str, list[str | list[str]]]] = {
        phase: {
            title: ["Multiline", [f"^{phase}/{each}$" for each in tags]]
            for title, tags in _CHARTS.items()
        }
        for phase in PHASES
    }
    return {**phases, "results": {"final metrics": ["Multiline", [f"^{FINAL}/.*"]]}}


class Board:
    """TensorBoard of one phase: one continuous curve, however often the phase is started.

    Every point is handed to the system at once, so that what a killed run has shown before its last
    checkpoint is there; what it has shown after that is hidden when this one begins at `done`.
    """

    def __init__(
        self, folder: Path, world: World, *, prefix: str, done: int, again: bool = False
    ) -> None:
        """prefix: of all tags, the phase's name. done: steps that are gone on from. again: the last
        of them will be validated, which an earlier start may have shown already; what it has shown
        is left out then.
        """
        self._writer, self._prefix = None, prefix
        self._done, self._shown = done, frozenset[str]()
        if world.is_main:
            if done and again:
                self._shown = _shown_at(folder, done)
            _await_a_later_second(folder)
            self._writer = SummaryWriter(str(folder), purge_step=done + 1 if done else 0)
            self._writer.add_custom_scalars(layout())

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point for each name; on disk before a checkpoint of this step can be."""
        if self._writer is not None:
            for tag, value in ((f"{self._prefix}/{name}", each) for name, each in values.items()):
                if not self._has(tag, step):
                    self._writer.add_scalar(tag, value, step)
            self._writer.flush()

    def text(self, name: str, value: str, step: int) -> None:
        """A text in Markdown."""
        if self._writer is not None:
            self._writer.add_text(f"{self._prefix}/{name}", value, step)
            self._writer.flush()

    def image(self, name: str, image: Image.Image, step: int) -> None:
        """An RGB picture."""
        tag = f"{self._prefix}/{name}"
        if self._writer is not None and not self._has(tag, step):
            self._writer.add_image(tag, np.asarray(image), step, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        """Writes out what is buffered."""
        if self._writer is not None:
            self._writer.close()

    def _has(self, tag: str, step: int) -> bool:
        return step == self._done and tag in self._shown


def _await_a_later_second(folder: Path) -> None:
    """TensorBoard takes a folder's files by name: the second of their start, then the process.

    Of two that were begun in one second the later may come first, and hide the other's points.
    """
    seconds = [int(each.name.split(".")[3]) for each in folder.glob(_EVENTS)]
    for _ in range(_TICKS):
        if max(seconds, default=0) < int(time.time()):
            return
        time.sleep(_TICK)


def _shown_at(folder: Path, step: int) -> frozenset[str]:
    """The tags of what the event files in `folder` show of `step`, as TensorBoard reads them."""
    shown: set[str] = set()
    for file in sorted(folder.glob(_EVENTS)):
        for event in EventFileLoader(str(file)).Load():
            if event.session_log.status == SessionLog.START and event.step <= step:
                shown.clear()  # the start that wrote this has hidden them
            if event.step == step:
                shown.update(each.tag for each in event.summary.value)
    return frozenset(shown)


def show_results(
    run: Path,
    source: str,
    recipe: Mapping[str, Value],
    metrics: Mapping[str, float],
    samples: Image.Image | None = None,
) -> None:
    """Adds what came out of a phase or an evaluation to the run's own board; the newest counts.

    On rank 0 alone. TensorBoard keeps the first recipe that it reads of a run, so the board is one
    file, which is written anew: this recipe, and the results that are there already. (One that is
    open meanwhile shows new metrics, and a new recipe when it is started again.) The list of
    columns that torch makes for the hparams page is left out: TensorBoard reads only one such list,
    and without any it finds the columns of all runs.

    Args:
        run: the run's folder.
        source: the phase, or the evaluation's folder name.
        recipe: the values that tell this run from others, by key.
        metrics: by name.
        samples: a picture of samples.
    """
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    _, started, ended = hparams(dict(recipe), {})  # type: ignore[no-untyped-call]
    made = [started, ended, custom_scalars(layout())]  # type: ignore[no-untyped-call]
    for name, value in metrics.items():
        made.append(scalar(f"{FINAL}/{source}/{name}", value))  # type: ignore[no-untyped-call]
    if samples is not None:
        picture = np.asarray(samples.convert("RGB"))
        tag = f"{FINAL}/{source}/samples"
        made.append(image(tag, picture, dataformats="HWC"))  # type: ignore[no-untyped-call]
    older, kept = _results_in(folder)
    now = time.time()
    kept |= {v.tag: Event(wall_time=now, summary=Summary(value=[v])) for s in made for v in s.value}
    _write_events(folder, [Event(wall_time=now, file_version=_VERSION), *kept.values()])
    for file in older:
        file.unlink(missing_ok=True)


def _results_in(folder: Path) -> tuple[list[Path], dict[str, Event]]:
    """The event files of a run's board, and the newest event of each tag of results in them.

    Two evaluations of a run may end at once. Each takes away only what it has read and written
    again, so that no result is lost; a file that is taken away meanwhile is looked for anew.
    """
    while True:
        files, found = sorted(folder.glob(_EVENTS)), dict[str, Event]()
        try:
            for file in files:
                for event in LegacyEventFileLoader(str(file)).Load():
                    for each in event.summary.value:
                        if each.tag.startswith(f"{FINAL}/"):
                            alone = Summary(value=[each])
                            found[each.tag] = Event(wall_time=event.wall_time, summary=alone)
        except NotFoundError:
            continue
        return files, found


def _write_events(folder: Path, events: Iterable[Event]) -> None:
    """An event file, whole or not at all; its name comes after those of the files before it."""
    _await_a_later_second(folder)
    unique = uuid4().hex
    name = _EVENTS.replace("*", f"{int(time.time()):010d}.{socket.gethostname()}.{unique}")
    writing = folder / f".{unique}.tmp"  # not a name that TensorBoard would read
    with writing.open("wb") as file:
        records = RecordWriter(file)
        for each in events:
            records.write(each.SerializeToString())
        file.flush()
        os.fsync(file.fileno())
    writing.replace(folder / name)
