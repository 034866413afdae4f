"""TensorBoard and the terminal: what a run shows while it goes on.

The only module that touches TensorBoard. A `Board` exists on every rank and writes on the main one
alone; the `Monitor` reduces over ranks once every `log_every` steps, never in between.
"""

import logging
import resource
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from pipeline.dist import World, max_over_ranks
from pipeline.trainer import StepRecord, Trainer

log = logging.getLogger("pipeline")


class Board:
    """TensorBoard of one phase; steps that an earlier start did after `done` are hidden."""

    def __init__(self, folder: Path, world: World, *, done: int) -> None:
        self._writer = None
        if world.is_main:
            self._writer = SummaryWriter(str(folder), purge_step=done + 1 if done else 0)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """One point for each name."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def text(self, name: str, value: str, step: int) -> None:
        """A text in Markdown."""
        if self._writer is not None:
            self._writer.add_text(name, value, step)

    def image(self, name: str, image: Image.Image, step: int) -> None:
        """An RGB picture."""
        if self._writer is not None:
            self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        """Writes out what is buffered."""
        if self._writer is not None:
            self._writer.close()


class Monitor:
    """Scalars and one terminal line every `log_every` steps."""

    def __init__(self, board: Board, name: str, *, total_steps: int, log_every: int) -> None:
        self._board, self._name = board, name
        self._total, self._every = total_steps, log_every
        self._window: list[StepRecord] = []

    def on_start(self, trainer: Trainer) -> None:
        """Nothing to show yet."""

    def on_step(self, trainer: Trainer, record: StepRecord) -> None:
        """Collects, and shows at the end of each window."""
        self._window.append(record)
        if record.step % self._every == 0 or trainer.finished:
            self._show(trainer)
            self._window = []

    def on_finish(self, trainer: Trainer) -> None:
        """Nothing: the last step was shown."""

    def on_stop(self, trainer: Trainer) -> None:
        """Shows what an early stop left unshown."""
        if self._window:
            self._show(trainer)

    def _show(self, trainer: Trainer) -> None:
        window, world = self._window, trainer.world
        elapsed = max(sum(each.seconds for each in window), 1e-9)
        loss = sum(each.loss for each in window) / len(window)
        trainer.progress.train_loss = loss
        memory = max_over_ranks(_memory_gib(), world)
        records = sum(each.records for each in window)
        wait = sum(each.data_seconds for each in window)
        last = window[-1]
        skipped = sum(trainer.progress.records_skipped.values())
        scalars = {
            "train/loss": loss,
            "train/grad_norm": last.grad_norm,
            "train/steps_skipped": trainer.progress.steps_skipped,
            "speed/samples_per_second": records / elapsed,
            "speed/target_tokens_per_second": sum(each.targets for each in window) / elapsed,
            "speed/step_seconds": elapsed / len(window),
            "data/wait_fraction": wait / elapsed,
            "data/padding_fraction": sum(each.padding for each in window) / len(window),
            "data/records_skipped": skipped,
            "data/texts_cut": trainer.progress.texts_cut,
            "memory/process_peak_gib": memory[0],
            "memory/gpu_peak_gib": memory[1],
        }
        scalars |= {f"lr/{name}": value for name, value in last.lrs.items()}
        for name, count in trainer.progress.records_by_set.items():
            scalars[f"data/records/{name}"] = count
        for reason, count in trainer.progress.records_skipped.items():
            scalars[f"data/skipped/{reason.replace(' ', '_')}"] = count
        self._board.scalars(scalars, last.step)
        left = timedelta(seconds=round(elapsed / len(window) * (self._total - last.step)))
        log.info(
            "%-13s step %*d/%d  eta %s  loss %.4f  %6.1f samples/s  %8.0f tokens/s  "
            "data wait %2.0f %%%s",
            self._name,
            len(str(self._total)),
            last.step,
            self._total,
            left,
            loss,
            records / elapsed,
            scalars["speed/target_tokens_per_second"],
            100 * wait / elapsed,
            f"  skipped {skipped}" if skipped else "",
        )


def _memory_gib() -> list[float]:
    """Peak resident memory of this process, and peak memory of its GPU, in GiB."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return [resident / 2**30, gpu / 2**30]
