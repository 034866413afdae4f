"""What an evaluation begins with: the model of which export, whole or partitioned, and its split.

Without DeepSpeed, so that generation is not slowed by gathering parameters, unless
`evaluate.ds_config` asks for partitions. Measures the loss; scores no text.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.assemble import CaptionModel, build_caption_model, check_adapters, check_stop
from pipeline.config import PHASES, Config
from pipeline.data.collate import Batch
from pipeline.data.loader import Pass
from pipeline.data.plan import Plan
from pipeline.dist import World, on_main
from pipeline.ds_config import read_ds_config, zero_stage
from pipeline.engine import dtype_of, resolve_precision
from pipeline.errors import ConfigError
from pipeline.export_files import ExportTensors, check_has_st
from pipeline.exports import find_export
from pipeline.models.families import family
from pipeline.models.multimodal import MultimodalLM
from pipeline.objectives import LanguageTask
from pipeline.run import finished_export
from pipeline.splits import Split, caption_dataset, open_split, share_of
from pipeline.stopping import stoppable
from pipeline.tasks import scored
from pipeline.validation import language_metrics, skipped_over_ranks
from pipeline.zero import partition_for_inference, placement_for

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode with its LM loss, ready on this rank's device."""

    built: CaptionModel
    forward: Callable[..., Any]  # of a `LanguageTask`
    dtype: torch.dtype
    partitioned: bool  # then every rank makes the same number of calls


@dataclass(frozen=True)
class Scoring:
    """A finished model beside the records that it is scored on, on this rank."""

    config: Config  # as evaluation reads it, see `tasks.scored`
    export: Path
    split: Split
    plan: Plan
    loaded: Loaded
    loss: float  # a target token, over all ranks
    world: World

    @property
    def model(self) -> MultimodalLM:
        """In eval mode."""
        return self.loaded.built.model

    def rows(self, kind: str) -> Pass:
        """A pass over this rank's rows; kind: `captions` of `splits.caption_dataset`."""
        return _rows(self.config, self.loaded, self.split, self.plan, self.world, kind)

    def measured(self, reading: Pass) -> dict[str, Any]:
        """What metrics.json says of every evaluation, `reading` being through; a collective."""
        skipped = dict(skipped_over_ranks(reading.faults, self.world))
        return {"export": str(self.export), "loss": self.loss, "skipped": skipped}

    def batches(self, reading: Pass, what: str) -> Iterator[Batch]:
        """The batches of a pass that takes long: a line in the log for each; a stop is heeded."""
        return stoppable(_watched(reading, what), self.world)


def open_for_scoring(config: Config, world: World, asked: str) -> Scoring:
    """Chooses and loads the export that the recipe says, opens its split, measures the loss.

    Every rank calls it. asked: what the split is called in the log ("questions").

    Raises:
        ConfigError: no phase is finished.
        Stopped: a stop was asked for meanwhile.
    """
    export = chosen_export(config, world)
    config = scored(config)
    settings = config.evaluate
    split = open_split(config, settings.split)
    log.info("evaluate      %s on %s (%d %s)", export, settings.split, split.records, asked)
    loaded = load_for_scoring(config, export, split, world)
    plan = split.in_order(settings.batch * world.size, settings.records)
    batches = _rows(config, loaded, split, plan, world, "all")()
    loss = language_metrics(loaded.forward, batches, world, loaded.dtype)["loss"]
    return Scoring(config, export, split, plan, loaded, loss, world)


def load_for_scoring(config: Config, export: Path, split: Split, world: World) -> Loaded:
    """The recipe's model with an export laid over it; every rank calls it.

    split: the one that `evaluate.split` names, whose features may be cached.
    """
    precision = resolve_precision(config.precision, world.device)
    dtype = dtype_of(precision)
    chosen = config.evaluate.ds_config
    ds_config = {} if chosen is None else read_ds_config("evaluate", chosen)
    built = build_caption_model(
        config,
        ExportTensors(export),
        {config.evaluate.split: split},
        dtype=dtype,
        placement=placement_for(ds_config, precision, world),
        world=world,
    )
    task = LanguageTask(built.model).eval()
    if zero_stage(ds_config) == 3:
        forward = partition_for_inference(task, ds_config, precision, world)
        return Loaded(built, forward, dtype, partitioned=True)
    return Loaded(built, task.to(world.device), dtype, partitioned=False)


def _rows(
    config: Config, loaded: Loaded, split: Split, plan: Plan, world: World, kind: str
) -> Pass:
    dataset = caption_dataset(
        config,
        split,
        plan,
        loaded.built.images[config.evaluate.split],
        loaded.built.tokenizer,
        share_of(world, config.evaluate.batch),
        captions=kind,
    )
    return Pass(dataset, config.data.workers)


def _watched(reading: Pass, what: str) -> Iterator[Batch]:
    steps = reading.dataset.plan.steps_per_epoch
    began = time.perf_counter()
    for done, batch in enumerate(reading(), start=1):
        yield batch
        left = (time.perf_counter() - began) / done * (steps - done)
        log.info("evaluate      %s %d/%d  eta %.0f s", what, done, steps, left)


def chosen_export(config: Config, world: World) -> Path:
    """`evaluate.export`, or that of the last phase with an LM: a stopped one is never skipped."""
    if config.evaluate.export is not None:
        found: str = on_main(lambda: str(_named_export(config)), world)
        return Path(found)
    enabled = [name for name in PHASES[1:] if getattr(config, name).enabled]
    if not enabled:
        raise ConfigError(
            "evaluate: neither st_align nor llm_tune is enabled in this recipe, so there is no "
            "caption model; enable one"
        )
    return finished_export(
        config, enabled[-1], world, wording=("evaluate scores", "evaluate.export")
    )


def _named_export(config: Config) -> Path:
    """The export of `evaluate.export`; whether its tensors fit, loading them tells."""
    export = find_export(Path(config.evaluate.export or ""), "evaluate.export")
    if family(config.family).sees_images(config):
        check_has_st(export)
    check_adapters(config, export)
    check_stop(config, export)
    return export
