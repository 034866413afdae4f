"""An export of ours as folders and files that other libraries load, with a model card.

What can be merged into a base model is merged: LoRA, trained weights and norms, LLaMA-Adapter's
bias and scale, and LaVIN's adapters for one modality at a time. What cannot stays beside it as
safetensors. Needs no data, no GPU and no DeepSpeed: an export is the same whatever ZeRO stage made
it. One process does all; the model is whole in its memory, in float32.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.assemble import check_adapters, overlay, overlay_clip, overlay_parts
from pipeline.config import Config, ExportConfig
from pipeline.errors import ConfigError
from pipeline.export_files import ExportTensors, read_export
from pipeline.exports import RECIPE
from pipeline.model_card import Part, model_card
from pipeline.models.affine import LinearAffines
from pipeline.models.decoder import decoder
from pipeline.models.encoder import ImageEncoder, load_clip
from pipeline.models.encoder_sketch import sketch_clip
from pipeline.models.families import family
from pipeline.models.folded import folded_llm
from pipeline.models.folders import write_clip, write_llm, write_st
from pipeline.models.lavin_model import Lavin
from pipeline.models.llm import llm_width, load_llm, load_llm_config, load_tokenizer
from pipeline.models.lora import merge
from pipeline.models.multimodal import MultimodalLM
from pipeline.models.placement import Placement
from pipeline.models.plain import make_plain
from pipeline.models.quantize import NONE
from pipeline.recipe import save_recipe

_ADAPTERS = "adapters.safetensors"
_AFFINE = "affine."
_TOWER_ADAPTERS = "encoder.adapters."


@dataclass(frozen=True)
class _Source:
    """What is converted."""

    config: Config
    tensors: Mapping[str, Tensor]  # of the export
    folder: Path  # that is written

    def of(self, part: str) -> dict[str, Tensor]:
        """The export's tensors of a part, by the names within it."""
        names = (name for name in self.tensors if name.startswith(part))
        return {name.removeprefix(part): self.tensors[name] for name in names}


def convert(config: Config, export: Path, out: Path) -> str:
    """Writes all parts of an export, the recipe and README.md; returns a line that says which.

    `out` appears by rename, complete or not at all. ConfigError where the LLM's weights would be
    quantised.
    """
    check_adapters(config, export)
    _check_whole(config, export)
    config = replace(config, export=ExportConfig())
    writing = out.with_name(f".writing-{out.name}")
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    source = _Source(config, ExportTensors(export), writing)
    tower, encoder = _tower(source)
    parts, merged = _language(source) if source.of("st.") else ([], set[str]())
    if parts:
        parts.append(_st(source, encoder))
    parts += tower
    parts += _rest(source, merged)
    save_recipe(config, writing / RECIPE)
    card = model_card(config, export, read_export(export) or {}, parts)
    (writing / "README.md").write_text(card, encoding="utf-8")
    if out.exists():
        out.rmdir()  # empty
    writing.rename(out)
    said = ", ".join(f"{each.name} ({each.format})" for each in parts)
    return f"{out}: {said}, README.md" + ("" if tower else f"; encoder: {encoder}")


def _check_whole(config: Config, export: Path) -> None:
    quantize = config.llm.quantize
    if quantize != NONE:
        raise ConfigError(
            f"checkpoint={export} was trained beside weights of llm.quantize={quantize}; "
            "add llm.quantize=none to write the weights as they came, with LoRA merged into them "
            "(outputs differ by what the bits had rounded)"
        )


def merged_llm(config: Config, tensors: Mapping[str, Tensor]) -> PreTrainedModel:
    """The recipe's LLM with an export laid over it and LoRA merged, a plain model of transformers.

    Adapters of the families are not in it.
    """
    llm = load_llm(config.llm, dtype=torch.float32, placement=Placement(), seed=config.seed)
    overlay(llm, tensors, "llm.", Placement())
    merge(llm)
    return llm


def _language(source: _Source) -> tuple[list[Part], set[str]]:
    """Writes the language model, as often as it has to be; the prefixes of what is merged."""
    if source.config.family == "lavin":
        return _folded(source)
    llm = merged_llm(source.config, source.tensors)
    merged = {"llm."}
    if source.of(_AFFINE) and not source.config.llm.lora.rank and _merge_affine(source, llm):
        merged.add(_AFFINE)
    _write_llm(source, llm, "llm")
    words = "the language model with all that was trained in it merged"
    if source.of("adaption."):
        words = f"{words}; the adaption prompts are not in it, without them it sees no images"
    return [Part("llm/", "transformers", words)], merged


def _merge_affine(source: _Source, llm: PreTrainedModel) -> bool:
    """Merges bias and scale; False, and nothing done, where the LLM has no place for biases."""
    layers = decoder(llm)
    affine = LinearAffines(layers)
    affine.load_state_dict(source.of(_AFFINE))
    trial = merged_llm(source.config, {})  # says whether its architecture admits them
    LinearAffines(decoder(trial)).merge_into(decoder(trial))
    if not make_plain(trial):
        return False
    affine.merge_into(layers)
    return make_plain(llm)


def _folded(source: _Source) -> tuple[list[Part], set[str]]:
    """LaVIN's LLM for rows with and without an image: the routing is fixed for each of them."""
    parts = []
    for name, has_image in (("llm-text", False), ("llm-image", True)):
        llm = folded_llm(_lavin(source), has_image=has_image)
        if llm is None:
            _write_llm(source, merged_llm(source.config, source.tensors), "llm")
            words = "the language model without its adapters, which its architecture cannot hold"
            return [Part("llm/", "transformers", words)], {"llm."}
        _write_llm(source, llm, name)
        rows = "with an image, whose embeddings are put in" if has_image else "without one"
        words = f"the language model for rows {rows}, its adapters merged for that modality"
        parts.append(Part(f"{name}/", "transformers", words))
    return parts, {"llm."}  # the adapters are kept too: both modalities in one model need them


def _lavin(source: _Source) -> Lavin:
    """The whole model but its image tower."""
    model: MultimodalLM = family("lavin").build(
        source.config,
        dtype=torch.float32,
        placement=Placement(),
        with_encoder=False,
        feature_width=_feature_width(source.config),
    )
    assert isinstance(model, Lavin)
    overlay_parts(model, source.tensors, Placement())
    return model.eval()


def _feature_width(config: Config) -> int:
    """C, of the features that the ST takes; reads no weights."""
    sketch = sketch_clip(config.encoder)
    visual = sketch.model.visual
    assert isinstance(visual, nn.Module)
    bare = ImageEncoder(visual, sketch.width, scales=config.encoder.scales)
    return family(config.family).tower(config, bare).width


def _write_llm(source: _Source, llm: PreTrainedModel, name: str) -> None:
    write_llm(llm, load_tokenizer(source.config.llm), source.folder / name)


def _st(source: _Source, encoder: str) -> Part:
    config = source.config
    details = {
        "family": config.family,
        "feature_width": _feature_width(config),
        "llm_width": llm_width(load_llm_config(config.llm)),
        "normalize": config.encoder.normalize,
        "encoder": encoder,
        "stop": config.evaluate.stop,
    }
    write_st(config.st, source.of("st."), source.folder, details)
    return Part("st.safetensors", "beside st.json", "the network between encoder and LLM")


def _tower(source: _Source) -> tuple[list[Part], str]:
    """Writes the image-text model where it was adapted; which encoder to use, in words."""
    config = source.config
    names = filter(None, (config.encoder.arch, config.encoder.pretrained))
    own = {n: t for n, t in source.of("encoder.").items() if not n.startswith("adapters.")}
    if not own:
        return [], f"{', '.join(names)} of open_clip as it came"
    clip = load_clip(config.encoder, seed=config.seed)
    texts = {f"text.{name}": each for name, each in source.of("text.").items()}
    overlay_clip(clip.model, {f"encoder.{name}": each for name, each in own.items()} | texts)
    write_clip(config.encoder, clip.model, source.folder / "encoder")
    text = "" if texts else "; its text tower as it came"
    return [Part("encoder/", f"open_clip{text}", "the adapted image tower")], "encoder/"


def _rest(source: _Source, merged: set[str]) -> list[Part]:
    """What no library knows: kept under its names, for this project."""
    done = (*merged, "st.", "text.", "llm.")
    names = [name for name in source.tensors if not name.startswith(done)]
    left = [n for n in names if not n.startswith("encoder.") or n.startswith(_TOWER_ADAPTERS)]
    if not left:
        return []
    tensors = {name: source.tensors[name].contiguous() for name in left}
    save_file(tensors, source.folder / _ADAPTERS)
    kinds = sorted({name.split(".")[0] for name in left} - {"encoder"})
    kinds += ["those of the image tower"] if any(n.startswith("encoder.") for n in left) else []
    return [Part(_ADAPTERS, "loaded by this project", f"adapters: {', '.join(kinds)}")]
