"""A small CLIP and a small LM from scratch, for whoever has no weights.

Random models in open_clip's and transformers' own formats are trained by the ordinary phases
(the contrastive one, and LLM tuning without images) and written back in the same formats: from
then on they are weights like any others. Needs shards, nothing else.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from pipeline.assemble import overlay, overlay_clip
from pipeline.config import Config, EncoderConfig, LLMConfig
from pipeline.data.faults import ContentFault
from pipeline.data.plan import items_in_order
from pipeline.dist import World, agree_any, from_main, wait_for_all
from pipeline.durable import write_json
from pipeline.engine import dtype_of
from pipeline.errors import ConfigError
from pipeline.export_files import ExportTensors
from pipeline.hashes import fingerprint_of
from pipeline.models.encoder import load_clip
from pipeline.models.llm import load_llm
from pipeline.models.placement import Placement
from pipeline.models.scratch import create_clip, create_llm, save_clip, save_llm, train_tokenizer
from pipeline.run import export_folder, learnt_values, run_phase
from pipeline.splits import Split, open_training
from pipeline.tasks import QUESTIONS, all_texts, task_settings

log = logging.getLogger("pipeline")

_MADE_BY = "made_by.json"


def pretrain(config: Config, world: World) -> bool:
    """Makes `pretrain.out`/clip and `pretrain.out`/llm; True when both are there.

    Every rank calls it; it resumes like any phase. Existing weights are left alone.
    """
    if not config.pretrain.out:
        raise ConfigError(
            "pretrain.out is empty: this recipe brings its own weights (encoder.*, llm.path); "
            "name a folder to make small ones from scratch"
        )
    out = Path(config.pretrain.out)
    derived = _derived(config)
    made_by = _made_by(derived)
    _check_existing(out, from_main(_read(out / _MADE_BY), world), made_by)
    missing = not ((out / "clip").is_dir() and (out / "llm").is_dir())
    if not agree_any(missing, world):
        return True
    if world.is_main:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / _MADE_BY, made_by)
    initial = _initial_folder(derived)
    if world.is_main and not (initial / "llm").is_dir():
        _create(derived, initial)
    wait_for_all(world)
    clip = _clip_recipe(derived, initial)
    if agree_any(not (out / "clip").is_dir(), world):
        if not run_phase(clip, "encoder_adapt", world):
            return False
        if world.is_main:
            _publish_clip(clip, initial / "clip", out / "clip")
        wait_for_all(world)
    language = _language_recipe(derived, initial)
    if agree_any(not (out / "llm").is_dir(), world):
        if not run_phase(language, "llm_tune", world):
            return False
        if world.is_main:
            _publish_llm(language, initial / "llm", out / "llm")
        wait_for_all(world)
    log.info("%-13s %s and %s", "pretrained", out / "clip", out / "llm")
    return True


def recipes_of_pretraining(config: Config) -> list[tuple[str, str, Config]]:
    """(folder below `pretrain.out`, phase, recipe) of what makes the CLIP and the LM."""
    derived, out = _derived(config), Path(config.pretrain.out)
    return [
        ("clip", "encoder_adapt", _clip_recipe(derived, out)),
        ("llm", "llm_tune", _language_recipe(derived, out)),
    ]


def _clip_recipe(derived: Config, weights: Path) -> Config:
    return replace(derived, encoder=EncoderConfig(f"local-dir:{weights / 'clip'}", None))


def _language_recipe(derived: Config, weights: Path) -> Config:
    return replace(
        derived,
        family="text",
        llm=LLMConfig(str(weights / "llm")),
        encoder_adapt=replace(derived.encoder_adapt, enabled=False),
    )


def _made_by(derived: Config) -> str:
    """A hash of all that the weights depend on."""
    texts = open_training(derived).fingerprint
    phases = [learnt_values(derived.encoder_adapt), learnt_values(derived.llm_tune)]
    scratch = asdict(derived.pretrain.scratch)
    settings = [derived.seed, derived.data.max_tokens, texts, *_asked(derived)]
    return fingerprint_of(phases, scratch, *settings)


def _asked(config: Config) -> list[object]:
    """How questions are put, where there are some."""
    return task_settings(config) if config.data.task == QUESTIONS else []


def _check_existing(out: Path, found: str | None, made_by: str) -> None:
    """Weights of other settings are refused; a folder without our mark is the user's own."""
    if found not in (None, made_by):
        raise ConfigError(
            f"pretrain.out={out} holds weights made with other pretrain settings, seed or shards; "
            "name another folder, or delete it"
        )


def _read(path: Path) -> str | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _derived(config: Config) -> Config:
    """The recipe under which the two small models are trained, each by one ordinary phase."""
    made = config.pretrain
    return replace(
        config,
        name=f"{config.name}-pretrain",
        baseline=False,
        data=replace(config.data, shards=made.shards, mix=[]) if made.shards else config.data,
        encoder_adapt=replace(made.clip, enabled=True),
        st_align=replace(config.st_align, enabled=False),
        llm_tune=replace(made.llm, enabled=True, segments=[], init_from=None),
    )


def _initial_folder(config: Config) -> Path:
    """Where the random models lie; other sizes, seeds or texts have another folder."""
    texts = open_training(config).fingerprint
    made_by = fingerprint_of(asdict(config.pretrain.scratch), config.seed, texts, *_asked(config))
    return Path(config.runs) / config.name / f"initial-{made_by}"


def _create(config: Config, folder: Path) -> None:
    split = open_training(config)
    tokenizer = train_tokenizer(_texts(config, split), config.pretrain.scratch.vocab_size)
    writing = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(writing, ignore_errors=True)
    create_clip(writing / "clip", config.pretrain.scratch, tokenizer, config.seed)
    create_llm(writing / "llm", config.pretrain.scratch, tokenizer, config.seed)
    writing.rename(folder)


def _texts(config: Config, split: Split) -> Iterator[str]:
    reader = split.reader
    for shard, record in items_in_order(split.in_order(1000)):
        try:
            yield from all_texts(config, reader.read(shard, record))
        except ContentFault:
            continue


def _publish_clip(config: Config, initial: Path, target: Path) -> None:
    """The trained CLIP as a folder of its own, in open_clip's format."""
    clip = load_clip(config.encoder, seed=config.seed)
    overlay_clip(clip.model, ExportTensors(export_folder(config, "encoder_adapt")))
    writing = _copy(initial, target)
    save_clip(clip.model, writing)
    writing.rename(target)


def _publish_llm(config: Config, initial: Path, target: Path) -> None:
    """The trained LM as a folder of its own, in transformers' format."""
    llm = load_llm(config.llm, dtype=dtype_of("fp32"), placement=Placement(), seed=config.seed)
    overlay(llm, ExportTensors(export_folder(config, "llm_tune")), "llm.", Placement())
    writing = _copy(initial, target)
    save_llm(llm, writing)
    writing.rename(target)


def _copy(initial: Path, target: Path) -> Path:
    writing = target.with_name(f".writing-{target.name}")
    shutil.rmtree(writing, ignore_errors=True)
    shutil.copytree(initial, writing)
    return writing
