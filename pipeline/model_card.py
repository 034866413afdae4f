"""The README.md beside an exported model: what it is, how to load it, how it was made, its scores.

Says only what files say: scores are those of an evaluation of this very export, and where there is
none, that is said. Knows no model.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipeline.config import Config
from pipeline.exports import DETAILS

_HOW = {
    "transformers": (
        'AutoModelForCausalLM.from_pretrained("{name}"), AutoTokenizer.from_pretrained("{name}")'
    ),
    "open_clip": 'open_clip.create_model_and_transforms("local-dir:{name}")',
    "beside": 'safetensors.torch.load_file("{name}"); st.json says how the network is built',
    "loaded": (
        'safetensors.torch.load_file("{name}"), by the names of this project\'s modules; '
        "stages/evaluate.py and stages/caption.py take the export itself"
    ),
}


@dataclass(frozen=True)
class Part:
    """A folder or a file of an exported model."""

    name: str
    format: str  # starts with a key of `_HOW`
    words: str  # what it is


def model_card(
    config: Config, export: Path, details: Mapping[str, Any], parts: Sequence[Part]
) -> str:
    """The card as Markdown.

    Args:
        config: the recipe.
        export: the folder that was converted.
        details: its export.json.
        parts: that lie beside the card.
    """
    blocks = (
        "---\nlibrary_name: transformers\ntags: [image-to-text, eim]\n---",
        f"# {config.name}",
        f"A multimodal language model of the family {config.family}, trained with EIM's pipeline "
        f"(phase {details.get('phase', 'unknown')}). Weights are float32.",
        "## What lies here",
        "\n".join(f"* `{each.name}`: {each.words}. `{_how(each)}`" for each in parts),
        "## Made from",
        "\n".join(_origin(config, details)),
        "## Scores",
        *_scores(export),
        "## Recipe",
        f"```yaml\n{OmegaConf.to_yaml(OmegaConf.structured(config)).rstrip()}\n```",
    )
    return "\n\n".join(blocks) + "\n"


def _how(part: Part) -> str:
    return next(how for key, how in _HOW.items() if part.format.startswith(key)).format(
        name=part.name.rstrip("/")
    )


def _origin(config: Config, details: Mapping[str, Any]) -> Iterator[str]:
    yield f"* image encoder: {config.encoder.arch}, {config.encoder.pretrained or 'own weights'}"
    yield f"* language model: {config.llm.path}"
    data = details.get("data")
    if data:
        yield f"* data: {data['records']} records, fingerprint {data['fingerprint']}"
    else:
        yield "* data: the export does not say"
    source = details.get("source")
    if source:
        yield f"* a checkpoint of the reference: {source['file']}, SHA-256 {source['sha256']}"
    progress = details.get("progress", {})
    yield (
        f"* trained: {progress.get('step', 0)} steps of its last phase, "
        f"{progress.get('records_seen', 0)} records seen"
    )
    yield f"* fingerprint of recipe, data and weights together: {details.get('fingerprint')}"


def _scores(export: Path) -> Iterator[str]:
    found = list(_measured(export))
    if not found:
        yield "None: this export was not scored (stages/evaluate.py does)."
    for metrics in found:
        yield f"On {metrics['records']} records of the split {metrics['split']}:"
        rows = [f"| {name} | {value:.4g} |" for name, value in _numbers(metrics)]
        yield "\n".join(["| score | value |", "|---|---|", *rows])


def _measured(export: Path) -> Iterator[dict[str, Any]]:
    """What evaluations wrote of this very export, and not of one that lay there before."""
    made = (export / DETAILS).stat().st_mtime_ns
    for file in sorted(export.parents[1].glob("evaluate/*/metrics.json")):
        try:
            metrics = json.loads(file.read_text(encoding="utf-8"))
            scored = Path(metrics["export"]).resolve() == export.resolve()
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if scored and file.stat().st_mtime_ns > made:
            yield metrics


def _numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    everything = {
        **metrics.get("scores", {}),
        **metrics.get("retrieval", {}),
        "loss": metrics.get("loss"),
        "perplexity": metrics.get("perplexity"),
    }
    for name, value in everything.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)
