"""The model that an evaluation scores: which export, loaded whole or in ZeRO-3 partitions.

Without DeepSpeed, so that generation is not slowed by gathering parameters, unless
`evaluate.ds_config` asks for partitions. Builds; scores nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.assemble import CaptionModel, build_caption_model, check_adapters, check_stop
from pipeline.config import PHASES, Config
from pipeline.data.loader import StepDataset
from pipeline.data.plan import Plan
from pipeline.dist import World, on_main
from pipeline.ds_config import read_ds_config, zero_stage
from pipeline.engine import dtype_of, resolve_precision
from pipeline.errors import ConfigError
from pipeline.export_files import ExportTensors, check_has_st
from pipeline.exports import find_export
from pipeline.objectives import LanguageTask
from pipeline.run import finished_export
from pipeline.splits import Split, caption_dataset, share_of
from pipeline.zero import partition_for_inference, placement_for


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode with its LM loss, ready on this rank's device."""

    built: CaptionModel
    forward: Callable[..., Any]  # of a `LanguageTask`
    dtype: torch.dtype
    partitioned: bool  # then every rank makes the same number of calls


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


def rows_to_score(
    config: Config, built: CaptionModel, split: Split, plan: Plan, world: World, captions: str
) -> StepDataset:
    """This rank's rows of `evaluate.split`; captions: which ones, see `splits.caption_dataset`."""
    return caption_dataset(
        config,
        split,
        plan,
        built.images[config.evaluate.split],
        built.tokenizer,
        share_of(world, config.evaluate.batch),
        captions=captions,
    )


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
    check_has_st(export)
    check_adapters(config, export)
    check_stop(config, export)
    return export
