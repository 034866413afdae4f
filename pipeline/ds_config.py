"""DeepSpeed's own JSON: read from `ds_configs/`, checked against the recipe, completed by it.

The JSON holds what only DeepSpeed knows (ZeRO stage, offload, buckets). What the recipe decides is
injected; a value that stands in both places and differs is a ConfigError. Does not import
deepspeed, so that a recipe is checked in milliseconds.
"""

import difflib
import json
from pathlib import Path
from typing import Any

from pipeline.config import PHASES, Config, PhaseConfig
from pipeline.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[1] / "ds_configs"

# The recipe's key that decides each of these, whatever the JSON would like.
_DECIDED_BY_RECIPE = {
    "train_batch_size": "global_batch",
    "train_micro_batch_size_per_gpu": "micro_batch",
    "gradient_accumulation_steps": "global_batch",
    "gradient_clipping": "clip_norm",
    "optimizer": "lr",
    "scheduler": "schedule",
    "bf16": "precision",
    "fp16": "precision",
}


# What a recipe may leave to DeepSpeed.
_KNOWN = (
    "zero_optimization",
    "zero_force_ds_cpu_optimizer",
    "zero_allow_untested_optimizer",
    "communication_data_type",
    "aio",
    "activation_checkpointing",
    "flops_profiler",
    "comms_logger",
    "checkpoint",
    "compile",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "seq_parallel_communication_data_type",
)


def check_ds_config(name: str, phase: PhaseConfig) -> None:
    """Raises ConfigError when the phase's DeepSpeed JSON is missing, broken or contradicts it."""
    loaded = read_ds_config(name, phase.ds_config)
    _check_form(f"{name}.ds_config={phase.ds_config}", loaded)
    for key, decider in _DECIDED_BY_RECIPE.items():
        if key not in loaded:
            continue
        ours = getattr(phase, decider, None)
        if ours is not None and loaded[key] == ours:
            continue
        raise ConfigError(
            f"{name}.ds_config={phase.ds_config} sets {key}={json.dumps(loaded[key])}, but the "
            f"recipe decides it ({decider}{'' if ours is None else f'={ours}'}); remove it there"
        )


def check_inference_config(name: str, ds_config: str) -> None:
    """Raises ConfigError when a DeepSpeed JSON for inference is missing, broken or misspelt."""
    _check_form(f"{name}.ds_config={ds_config}", read_ds_config(name, ds_config))


def check_unpartitioned(config: Config) -> None:
    """Raises ConfigError where a DeepSpeed JSON partitions weights that the recipe quantises.

    The contrastive phase has no language model, and may partition what it has.
    """
    if config.llm.quantize == "none":
        return
    phases: dict[str, PhaseConfig] = {name: getattr(config, name) for name in PHASES[1:]}
    held = {name: phase.ds_config for name, phase in phases.items() if phase.enabled}
    if config.evaluate.ds_config is not None:
        held["evaluate"] = config.evaluate.ds_config
    for name, ds_config in held.items():
        if zero_stage(read_ds_config(name, ds_config)) == 3:
            raise ConfigError(
                f"{name}.ds_config={ds_config}: ZeRO-3 cannot partition the weights of "
                f"llm.quantize={config.llm.quantize}; set {name}.ds_config="
                f"{'null' if name == 'evaluate' else 'zero2'}, or llm.quantize=none"
            )


def _check_form(where: str, loaded: dict[str, Any]) -> None:
    """Unknown keys (DeepSpeed would ignore a misspelt one) and a ZeRO stage that is none."""
    for key in loaded:
        if key not in _KNOWN and key not in _DECIDED_BY_RECIPE:
            close = difflib.get_close_matches(key, _KNOWN, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"usable: {', '.join(_KNOWN)}"
            raise ConfigError(f"{where} sets the unknown key '{key}'; {hint}")
    zero = loaded.get("zero_optimization", {})
    if not isinstance(zero, dict) or zero.get("stage", 0) not in (0, 1, 2, 3):
        raise ConfigError(
            f"{where}: zero_optimization={json.dumps(zero)} must be an object with a stage from 0 "
            "to 3"
        )
    if zero.get("overlap_comm") and zero.get("stage", 0) < 2:
        raise ConfigError(
            f"{where}: overlap_comm needs ZeRO-2 or 3 here, this is stage {zero.get('stage', 0)}; "
            "leave it out, or raise the stage"
        )


def read_ds_config(name: str, ds_config: str) -> dict[str, Any]:
    """A DeepSpeed JSON as a dictionary.

    name: the recipe's section that names it, for messages. ds_config: a path that ends in .json, or
    the name of a file of `ds_configs/`.
    """
    path = Path(ds_config)
    if path.suffix != ".json":
        path = FOLDER / f"{ds_config}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.json")))
        raise ConfigError(
            f"{name}.ds_config={ds_config}: no such file; use a path ending in .json or one "
            f"of {known}"
        )
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}.ds_config={path} is not readable JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{name}.ds_config={path} must hold a JSON object")
    return loaded


def zero_stage(ds_config: dict[str, Any]) -> int:
    """The ZeRO stage that a DeepSpeed JSON asks for (0 when it does not say)."""
    return int(ds_config.get("zero_optimization", {}).get("stage", 0))


def complete(
    ds_config: dict[str, Any], *, clip_norm: float, precision: str, ranks: int, trained: int
) -> dict[str, Any]:
    """The JSON with what the recipe decides put in.

    precision: bf16, fp16 or fp32. trained: parameters that train, which bound the communication
    buckets (DeepSpeed's default of 5e8 elements would allocate 1 GB for a 4 M parameter adapter).
    Micro-batch and accumulation are 1 for DeepSpeed: the trainer itself divides by the global
    number of targets, so DeepSpeed must not rescale anything.
    """
    zero = dict(ds_config.get("zero_optimization", {}))
    if zero.get("stage", 0) >= 1:
        zero.setdefault("reduce_bucket_size", max(min(trained, 500_000_000), 1))
    return {
        **ds_config,
        "zero_optimization": zero,
        "train_batch_size": ranks,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": clip_norm,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "steps_per_print": 2**31,
    }
