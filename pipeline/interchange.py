"""Models in and out: from the reference's checkpoints, to what transformers and open_clip load.

Trains nothing, and needs no data and no DeepSpeed. One process does all of it; the model is whole
in its memory, in float32.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.assemble import check_adapters, overlay, overlay_clip
from pipeline.config import Config, ExportConfig
from pipeline.data.files import sha256_of
from pipeline.errors import ConfigError
from pipeline.export_files import IMPORTED, ExportTensors, save_export
from pipeline.exports import WEIGHTS, find_export
from pipeline.hashes import fingerprint_of
from pipeline.models.encoder import feature_width, load_clip
from pipeline.models.folders import write_clip, write_llm, write_st
from pipeline.models.imports import read_reference
from pipeline.models.llm import llm_width, load_llm, load_tokenizer
from pipeline.models.lora import merge
from pipeline.models.placement import Placement
from pipeline.progress import Progress


def export(config: Config) -> str:
    """Does what the recipe's `export` section says; returns a line that says what was written.

    Raises:
        ConfigError: neither or both of official and checkpoint, no out, or one that is in use; the
            checkpoint and the recipe do not fit.
        CheckpointError: the checkpoint cannot be used.
    """
    asked = config.export
    if bool(asked.official) == bool(asked.checkpoint):
        raise ConfigError(
            "export: give either official=FILE (a checkpoint of the reference) or "
            "checkpoint=FOLDER (an export, a phase or a run of this project)"
        )
    if not asked.out:
        raise ConfigError("export: out= is missing; name a folder to be written")
    out = Path(asked.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out={out} exists and is not an empty folder; name another")
    if asked.official:
        return import_official(config, Path(asked.official), out)
    return convert(config, find_export(Path(asked.checkpoint), "checkpoint"), out)


def import_official(config: Config, file: Path, out: Path) -> str:
    """A checkpoint of the reference as an export, to be scored or tuned under this recipe."""
    found = read_reference(file, config)
    source = {"file": file.name, "sha256": sha256_of(file)}
    details = {
        "fingerprint": fingerprint_of(IMPORTED, source["sha256"]),
        "phase": IMPORTED,
        "source": source,
    }
    used = replace(found.config, export=ExportConfig())
    save_export(out, found.tensors, Progress(), details, used)
    return f"{out}: {found.remark}"


def convert(config: Config, source: Path, out: Path) -> str:
    """An export of ours as llm/, st.safetensors with st.json, and, where it was adapted, encoder/.

    `out` appears by rename, complete or not at all. ConfigError for a family whose language model
    is no plain one.
    """
    check_adapters(config, source)
    if config.family not in ("clipcap", "text"):
        raise ConfigError(
            f"checkpoint={source}: a model of family {config.family} is no plain LLM that other "
            f"libraries load; its own tensors are in {source / WEIGHTS}, by name"
        )
    tensors = ExportTensors(source)
    st = {name.removeprefix("st."): tensors[name] for name in tensors if name.startswith("st.")}
    adapted = any(name.startswith("encoder.") for name in tensors)
    names = filter(None, (config.encoder.arch, config.encoder.pretrained))
    tower = f"{', '.join(names)} of open_clip as it came"
    parts = []
    writing = out.with_name(f".writing-{out.name}")
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    if st:
        llm = merged_llm(config, tensors)
        write_llm(llm, load_tokenizer(config.llm), writing / "llm")
        details = {
            "feature_width": feature_width(config.encoder),
            "llm_width": llm_width(llm.config),
            "normalize": config.encoder.normalize,
            "encoder": "encoder/" if adapted else tower,
            "stop": config.evaluate.stop,
        }
        write_st(config.st, st, writing, details)
        parts += ["llm/ (transformers)", "st.safetensors and st.json"]
    if adapted:
        clip = load_clip(config.encoder, seed=config.seed)
        overlay_clip(clip.model, tensors)
        write_clip(config.encoder, clip.model, writing / "encoder")
        text = any(name.startswith("text.") for name in tensors)
        parts.append(f"encoder/ (open_clip{'' if text else '; its text tower as it came'})")
    if out.exists():
        out.rmdir()  # empty
    writing.rename(out)
    return f"{out}: {', '.join(parts)}" + ("" if adapted else f"; encoder: {tower}")


def merged_llm(config: Config, tensors: Mapping[str, Tensor]) -> PreTrainedModel:
    """The recipe's LLM with an export laid over it, as a plain model of transformers.

    The one place where adapters are merged into the weights that they adapt.
    """
    llm = load_llm(config.llm, dtype=torch.float32, placement=Placement(), seed=config.seed)
    overlay(llm, tensors, "llm.", Placement())
    merge(llm)
    return llm
