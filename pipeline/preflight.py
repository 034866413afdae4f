"""All of a recipe is checked before anything is trained or encoded.

Opens configurations and manifests, never weights. `recipe.validate` has checked the values by
themselves; here they meet what lies on disk.
"""

from pathlib import Path

import torch

from pipeline.captioning import end_ids
from pipeline.config import Config
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.captions import check_metrics
from pipeline.exports import DETAILS, WEIGHTS, is_export
from pipeline.models.encoder import check_encoder
from pipeline.models.families import family
from pipeline.models.llm import check_adapters, llm_width, load_llm_config, load_tokenizer
from pipeline.models.st import build_st
from pipeline.recipe import phase_configs
from pipeline.splits import open_split, open_training


def check_scores(config: Config) -> None:
    """Unknown metrics, and Java where they need it."""
    check_metrics(config.evaluate.metrics)


def check(config: Config) -> None:
    """Splits, weights and sizes of a recipe; raises ConfigError or DataError in one line."""
    for key, name in _splits(config).items():
        trains = key == "data.train_split"
        split = open_training(config) if trains else open_split(config, name)
        if split.records == 0:
            raise DataError(
                f"{key}={name}: {split.place} holds no records; prepare it with some, or name "
                "another split"
            )
    for name, phase in phase_configs(config):
        if phase.enabled and phase.init_from and not is_export(Path(phase.init_from)):
            raise ConfigError(
                f"{name}.init_from={phase.init_from} is not a finished export (a folder with "
                f"{DETAILS} and {WEIGHTS}); name another"
            )
    check_encoder(config.encoder)
    llm = load_llm_config(config.llm)
    end_ids(load_tokenizer(config.llm), config.evaluate.stop)
    family(config.family).check(config, llm)
    check_adapters(config.llm, llm)
    with torch.device("meta"):
        build_st(config.st, width=1, llm_width=llm_width(llm))


def _splits(config: Config) -> dict[str, str]:
    """The splits that are read, by their keys: where an export is scored, nothing is trained."""
    if config.evaluate.export is not None:
        return {"evaluate.split": config.evaluate.split}
    return {"data.train_split": config.data.train_split, "data.val_split": config.data.val_split}
