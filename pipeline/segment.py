"""Trains one segment of a phase: built, resumed, trained, exported.

Knows the order of these things and their files; what trains, on what and how is decided outside
(`phases.py`, `setup.py`), how a step works in `trainer.py`.
"""

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from pipeline.callbacks.board import FOLDER, Board
from pipeline.callbacks.checkpoint import Checkpointer
from pipeline.callbacks.evaluate import Evaluator
from pipeline.callbacks.monitor import Monitor
from pipeline.callbacks.requests import RequestFile
from pipeline.callbacks.settle import Settle, settles
from pipeline.callbacks.skips import SKIPPED_STEPS, Skips
from pipeline.callbacks.spikes import LOSS_SPIKES, Spikes
from pipeline.callbacks.step_lines import StepLines
from pipeline.callbacks.stop_after import StopAfter
from pipeline.checkpoint import choose_checkpoint, newest_checkpoint
from pipeline.config import Config, EncoderAdaptConfig, PhaseConfig
from pipeline.data.loader import iterate
from pipeline.dist import World, wait_for_all
from pipeline.engine import resolve_precision
from pipeline.export_files import ExportTensors, save_export
from pipeline.identity import Identity
from pipeline.models.families import added_by, is_added
from pipeline.models.lora import is_adapter
from pipeline.phases import Segment, learning_rate
from pipeline.progress import Progress
from pipeline.resume import load_checkpoint
from pipeline.retention import retention_of
from pipeline.saving import Saver
from pipeline.setup import Setup, set_up
from pipeline.splits import open_training
from pipeline.trainer import Callback, Trainer

log = logging.getLogger("pipeline")


class SegmentRun:
    """One segment: built, resumed, trained, exported."""

    def __init__(
        self,
        config: Config,
        name: str,
        segment: Segment,
        total: int,
        folder: Path,
        identity: Identity,
        world: World,
    ) -> None:
        self.config, self.name, self.segment, self.total = config, name, segment, total
        self.phase: PhaseConfig = getattr(config, name)
        self.folder, self.identity, self.world = folder, identity, world
        self.precision = resolve_precision(config.precision, world.device)
        self.stop_reason: str | None = None
        self.trained_parameters = 0
        self.steps = 0  # taken by this start

    @property
    def ran(self) -> dict[str, int | str]:
        """What the summary says of this start; an export keeps it for a summary that is lost."""
        return {
            "trained_parameters": self.trained_parameters,
            "ranks": self.world.size,
            "precision": self.precision,
        }

    def train(
        self, start: Mapping[str, Tensor], progress: Progress, target: Path, budget: int | None
    ) -> tuple[bool, Progress, Mapping[str, Tensor]]:
        """(finished, progress, tensors of the export) of the segment."""
        seed_everything(self.config.seed + self.world.rank)
        setup = set_up(
            self.config, self.name, self.segment, start, precision=self.precision, world=self.world
        )
        self.trained_parameters = setup.engine.trained_parameters
        progress = self._resume(setup, progress)
        resumed_at = progress.step
        self._announce(setup, progress)
        again = progress.validation_due or progress.step == self.segment.stop
        board = Board(
            self.folder / FOLDER, self.world, prefix=self.name, done=progress.step, again=again
        )
        if progress.step == 0:
            board.text("recipe", f"```yaml\n{OmegaConf.to_yaml(self.config)}\n```", 0)
        trainer = Trainer(
            engine=setup.engine,
            objective=setup.objective,
            load=lambda first, last: iterate(
                setup.dataset, first, last, workers=self.config.data.workers
            ),
            learning_rate=lambda update: learning_rate(self.phase, self.segment, update),
            last_step=self.segment.stop,
            progress=progress,
            callbacks=self._callbacks(board, setup, budget),
            max_bad_records=self._max_bad_records(setup),
        )
        trainer.fit()
        board.close()
        self.stop_reason = trainer.stop_reason
        self.steps = progress.step - resumed_at
        tensors: Mapping[str, Tensor] = {}
        if trainer.done:
            tensors = self._export(setup, start, progress, target)
        setup.engine.close()
        return trainer.done, progress, tensors

    def _resume(self, setup: Setup, progress: Progress) -> Progress:
        folder = self.folder / "checkpoints"
        newest = choose_checkpoint(folder, self.segment.start, self.segment.stop, self.world)
        if newest is None:
            return progress
        changes = self.config.resume_with_changes
        loaded = load_checkpoint(newest, setup.engine, self.identity, with_changes=changes)
        log.info("%-13s goes on from %s", self.name, newest)
        for each in loaded.changes:
            log.info("%-13s changed on the way: %s", self.name, each)
        return loaded

    def _announce(self, setup: Setup, progress: Progress) -> None:
        log.info(
            "%-13s trains %s: %s of %s parameters, steps %d to %d, global batch %d, %d rank(s), "
            "ZeRO-%d, %s",
            self.name,
            _listed([each.name for each in setup.engine.groups]),
            f"{setup.engine.trained_parameters:,}",
            f"{setup.engine.all_parameters:,}",
            progress.step,
            self.segment.stop,
            self.phase.global_batch,
            self.world.size,
            setup.engine.stage,
            self.precision,
        )

    def _callbacks(self, board: Board, setup: Setup, budget: int | None) -> tuple[Callback, ...]:
        phase = self.phase
        monitor = Monitor(board, self.name, total_steps=self.total, log_every=phase.log_every)
        checkpoints = self.folder / "checkpoints"
        return (
            StopAfter(budget),
            Skips(
                StepLines(self.folder / SKIPPED_STEPS, self.world),
                self.name,
                most=phase.max_skipped_steps,
                newest=lambda: newest_checkpoint(checkpoints, 0, self.segment.stop),
            ),
            Spikes(
                board,
                StepLines(self.folder / LOSS_SPIKES, self.world),
                self.name,
                window=phase.spike_window,
                threshold=phase.spike_threshold,
            ),
            monitor,
            Settle(self.name, phase, setup.blend),
            Evaluator(
                board,
                self.name,
                every=phase.eval_every,
                measure=setup.probe.measure,
                show=setup.probe.show,
            ),
            Checkpointer(
                self._saver(setup),
                board,
                RequestFile("SAVE", (self.folder, self.folder.parent), self.world),
                every=phase.checkpoint_every,
                attempts=self.config.checkpoints.attempts,
                before_save=monitor.carry,
                settles=settles(phase),
            ),
        )

    def _saver(self, setup: Setup) -> Saver:
        return Saver(
            self.folder / "checkpoints",
            setup.engine,
            self.identity,
            settings=self.config.checkpoints,
            retention=retention_of(self.phase),
        )

    def _max_bad_records(self, setup: Setup) -> Callable[[int], float]:
        """At step s: the fraction of all records planned so far, of one epoch at least."""
        plan, fraction = setup.dataset.plan, self.config.data.max_bad_fraction
        return lambda step: fraction * plan.records * max(step / plan.steps_per_epoch, 1.0)

    def _export(
        self, setup: Setup, start: Mapping[str, Tensor], progress: Progress, target: Path
    ) -> Mapping[str, Tensor]:
        """What trained, laid over what was taken over. A text tower ends with its phase."""
        trained = setup.engine.trained_tensors(setup.blend)
        if self.world.is_main:
            contrastive = isinstance(self.phase, EncoderAdaptConfig)
            tensors = {
                name: start[name] for name in start if contrastive or not name.startswith("text.")
            }
            tensors |= setup.task.exported(trained)
            split = open_training(self.config)
            details = {
                "fingerprint": self.identity.fingerprint,
                "identity": self.identity.as_json(),
                "phase": self.name,
                "lora": asdict(self.config.llm.lora) if any(map(is_adapter, tensors)) else None,
                "family": added_by(self.config) if any(map(is_added, tensors)) else None,
                "ran": self.ran,
                "data": {"records": split.records, "fingerprint": split.fingerprint},
            }
            save_export(target, tensors, progress, details, self.config)
            log.info("%-13s export %s", self.name, target)
        wait_for_all(self.world)
        return ExportTensors(target)


def _listed(names: Sequence[str]) -> str:
    """Up to four different names in their order."""
    different = list(dict.fromkeys(names))
    return " + ".join(different[:4] + ["..."] * (len(different) > 4))


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
