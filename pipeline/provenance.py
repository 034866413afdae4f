"""What the result of a phase depends on: its recipe's values that matter, its data, its weights.

What is left out changes how fast or how closely watched a phase runs, or where its files lie, not
what it learns. Local weights count by their content, an LLM of the hub by its commit, which the
preflight has put into the hub's local cache; an image tower of the hub counts by its name alone,
for its files are fetched later. Reads manifests and hashes weights; trains nothing.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from pipeline.checkpoint_state import identity_in
from pipeline.config import Config, EncoderAdaptConfig, LLMTuneConfig, PhaseConfig
from pipeline.dist import World, from_main
from pipeline.export_files import read_export
from pipeline.hashes import content_hashes
from pipeline.identity import Identity
from pipeline.models.families import family, family_settings
from pipeline.phases import predecessor
from pipeline.splits import Split, open_training
from pipeline.talks import TALKS
from pipeline.tasks import QUESTIONS

# Keys of a phase that change how fast or how closely watched it runs, not what it learns.
_HARMLESS = {
    "enabled",
    "ds_config",
    "init_from",
    "micro_batch",
    "activation_checkpointing",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "keep_best",
    "eval_every",
    "val_records",
    "sample_images",
    "stop_after",
    "max_skipped_steps",
    "spike_window",
    "spike_threshold",
    "caption_records",
    "question_records",
}


def identity_of_phase(
    config: Config, name: str, world: World, *, remember: bool = True
) -> Identity:
    """All that a phase's result depends on, its predecessors' recipes included.

    Every rank calls it; rank 0 reads the weights' hashes, and writes down new ones where
    `remember` is true. config: the effective one.
    """
    phase: PhaseConfig = getattr(config, name)
    before: Identity | None = None
    previous = predecessor(config, name)
    if phase.init_from is not None:
        found = from_main(read_export(Path(phase.init_from)), world)
        before = None if found is None else identity_in(found)
    elif previous is not None:
        before = identity_of_phase(config, previous, world, remember=remember)
    values: dict[str, Any] = {}
    if world.is_main:
        language = not isinstance(phase, EncoderAdaptConfig)
        cache = Path(config.runs) / ".hashes.json"
        values = _of_recipe(config, cache, language=language, remember=remember)
    values = from_main(values, world)
    if isinstance(phase, LLMTuneConfig):  # elsewhere adapters are fresh or the start's
        values |= _dotted("llm.lora", asdict(config.llm.lora))
    values |= _dotted(name, learnt_values(phase)) | _of_data(open_training(config))
    return Identity(values, before)


def learnt_values(phase: PhaseConfig) -> dict[str, object]:
    """The keys of a phase that decide what it learns."""
    return {key: value for key, value in asdict(phase).items() if key not in _HARMLESS}


def _of_recipe(config: Config, cache: Path, *, language: bool, remember: bool) -> dict[str, Any]:
    """What base weights and model a recipe means, independent of where its files lie.

    language: of a phase with an LM; without, only what the contrastive phase reads. cache,
    remember: see `hashes.content_hashes`.
    """
    encoder, hashed = config.encoder, partial(_contents, cache=cache, remember=remember)
    values: dict[str, Any] = {
        "seed": config.seed,
        "precision": config.precision,
        "encoder.pixels": encoder.pixels,
        "encoder.resize": encoder.resize,
        "data.lanes": config.data.lanes,
        "data.window": config.data.window,
        "data.max_pixels": config.data.max_pixels,  # of a record that is used
        "data.max_image_bytes": config.data.max_image_bytes,
    }
    if family(config.family).sees_images(config):
        folder = encoder.arch.removeprefix("local-dir:")
        local = folder != encoder.arch
        values |= hashed("encoder.arch", folder) if local else {"encoder.arch": encoder.arch}
        values |= hashed("encoder.pretrained", encoder.pretrained or "")
    own = _dotted(config.family, family_settings(config))
    if not language:
        return {**values, **(own if config.encoder_adapt.train == "adapters" else {})}
    if config.data.task == QUESTIONS:
        values |= _dotted("scienceqa", asdict(config.scienceqa))
    if config.data.task in TALKS:
        values |= _dotted("instruct", asdict(config.instruct))
        if config.instruct.template == "tokenizer":  # which may leave the end of an answer to it
            values["evaluate.stop"] = config.evaluate.stop
    return {
        **values,
        **own,
        **hashed("llm.path", config.llm.path),
        **_commit("llm.path", config.llm.path),
        **_dotted("st", vars(config.st)),
        "family": config.family,
        "data.task": config.data.task,
        "data.max_tokens": config.data.max_tokens,
        "encoder.normalize": encoder.normalize,
        "encoder.scales": encoder.scales,
        "llm.dropout": config.llm.dropout,
        "llm.quantize": config.llm.quantize,
    }


def _contents(key: str, place: str, *, cache: Path, remember: bool) -> dict[str, str]:
    """The content of a file, or of each file of a folder (a tokenizer's too); else the name."""
    if not place or not Path(place).exists():
        return {key: place}
    hashes = content_hashes(Path(place), cache, remember=remember)
    return {f"{key}/{name}" if name else key: f"content {each}" for name, each in hashes.items()}


def _commit(key: str, place: str) -> dict[str, str]:
    """The commit that the hub's cache has of a transformers model; nothing for what is no name."""
    if Path(place).exists():
        return {}
    try:
        config = try_to_load_from_cache(place, "config.json")
    except HFValidationError:
        return {}
    return {f"{key}/commit": Path(config).parent.name} if isinstance(config, str) else {}


def _of_data(split: Split) -> dict[str, Any]:
    """The shards' hashes; of a mixture each set's, with its weight."""
    told = [f"manifest {m.fingerprint[:16]} of {sum(m.sizes)} records" for m in split.manifests]
    if split.weights == (1.0,):
        return {"data": told[0]}
    pairs = enumerate(zip(told, split.weights, strict=True))
    return {f"data.mix[{i}]": f"{each}, weight {weight:g}" for i, (each, weight) in pairs}


def _dotted(prefix: str, values: Mapping[str, object]) -> dict[str, object]:
    """Values, nested or not, by their keys in the recipe."""
    found: dict[str, object] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}"
        found |= _dotted(name, value) if isinstance(value, dict) else {name: value}
    return found
