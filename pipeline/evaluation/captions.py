"""Caption scores: BLEU, METEOR, ROUGE-L, CIDEr and SPICE through pycocoevalcap, and a quick CIDEr.

Pure functions of predictions and references. Does not assume a GPU, a network, a run directory or
a writable package folder, and prints nothing. SPICE stands apart because it needs models that few
have (`spice.py`). All but the quick CIDEr need Java for their tokenizer.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.corpus_scores import BLEU, METEOR, Counts, bleu_counts, meteor_counts
from pipeline.evaluation.java import JAVA_METRICS, Id, Meteor, ptb_tokenize, require_java
from pipeline.evaluation.spice import spice

__all__ = [
    "METRICS",
    "Scored",
    "check_metrics",
    "mean_of",
    "quick_cider",
    "require_java",
    "score",
    "score_all",
    "score_each",
    "simple_tokenize",
    "spice_each",
]

METRICS = (*JAVA_METRICS, "quick_cider")

# A clitic ('s), a word (hyphens inside belong to it), or one sign on its own.
_TOKEN = re.compile(r"(?<=\w)'\w+|\w+(?:-\w+)*|[^\w\s]")
_BRACKETS = frozenset("()[]{}")

Tokenised = tuple[dict[Id, str], dict[Id, list[str]]]


@dataclass(frozen=True)
class Scored(Generic[Id]):
    """Scores of a set of captions, and what each caption adds to them."""

    totals: dict[str, float]
    each: dict[str, dict[Id, float]]  # by score, of those that are means over captions
    counts: dict[str, dict[Id, Counts]]  # of the others, see `corpus_scores.FORMULAS`


def check_metrics(metrics: Sequence[str]) -> None:
    """Check, before any caption is generated, that all `metrics` can be computed here.

    Args:
        metrics: names as in `evaluate.metrics`, of `METRICS`; empty means no caption scores.

    Raises:
        ConfigError: an unknown name, or one that needs Java where there is none.
    """
    for metric in metrics:
        if metric not in METRICS:
            near = difflib.get_close_matches(metric.lower(), METRICS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(
                f"evaluate.metrics: unknown metric {metric!r}: {hint}known are {', '.join(METRICS)}"
            )
    require_java(metrics)


def score(
    predictions: Mapping[Id, str], references: Mapping[Id, Sequence[str]], metrics: Sequence[str]
) -> dict[str, float]:
    """Score captions as the COCO caption server does.

    CIDEr weighs n-grams by how few of the scored images have them, so its value depends on the
    set of images; for a single image it is 0.

    Args:
        predictions: one caption for each image id; may be empty (it scores what an empty caption
            scores, mostly 0).
        references: one or more captions for each of the same ids.
        metrics: which scores, of `METRICS`; none gives an empty result. SPICE is left to
            `spice_each`.

    Returns:
        Bleu_1 to Bleu_4, METEOR, ROUGE_L and CIDEr as asked for, named as in pycocoevalcap, and
        CIDEr_quick for `quick_cider`. CIDEr is on its usual scale (10 for a perfect caption).

    Raises:
        ConfigError: unknown metric, or Java is needed and missing or failed.
        DataError: the ids differ, or an image has no reference.

    Source: pycocoevalcap/eval.py (`COCOEvalCap.evaluate`).
    """
    return score_all(predictions, references, metrics).totals


def score_all(
    predictions: Mapping[Id, str], references: Mapping[Id, Sequence[str]], metrics: Sequence[str]
) -> Scored[Id]:
    """As `score`, with what single images add to it."""
    check_metrics(metrics)
    _check_pairs(predictions, references)
    scores: dict[str, float] = {}
    each: dict[str, dict[Id, float]] = {}
    counts: dict[str, dict[Id, Counts]] = {}
    if any(metric in JAVA_METRICS and metric != "spice" for metric in metrics):
        tokenised = _tokenise(predictions, references, ptb_tokenize)
        if "bleu" in metrics:
            found, counts[BLEU] = _bleu(*tokenised)
            scores |= found
        if "meteor" in metrics:
            with Meteor() as meteor:
                statistics = meteor.statistics(*tokenised)
                scores[METEOR] = meteor.total(statistics)
            counts[METEOR] = {key: meteor_counts(line) for key, line in statistics.items()}
        if "rouge_l" in metrics:
            each["ROUGE_L"] = _rouge_l(*tokenised)
        if "cider" in metrics:
            each["CIDEr"] = _cider(*tokenised)
    if "quick_cider" in metrics:
        each["CIDEr_quick"] = score_each(predictions, references, quick=True)
    return Scored(scores | {name: mean_of(of) for name, of in each.items()}, each, counts)


def spice_each(
    predictions: Mapping[Id, str], references: Mapping[Id, Sequence[str]], models: Path
) -> dict[Id, float]:
    """SPICE, 0 to 1, of the images that have one; their mean is the SPICE.

    Args:
        predictions, references: as in `score`.
        models: the folder that `spice.spice_models` found.

    Raises:
        ConfigError: Java is missing, or its tokenizer failed.
        DataError: the ids differ, an image has no reference, or SPICE itself failed.
    """
    _check_pairs(predictions, references)
    return spice(*_tokenise(predictions, references, ptb_tokenize), models)


def score_each(
    predictions: Mapping[Id, str], references: Mapping[Id, Sequence[str]], *, quick: bool = False
) -> dict[Id, float]:
    """CIDEr of every image, to show the best and the worst of them; their mean is the CIDEr.

    Args:
        predictions: one caption for each image id.
        references: one or more captions for each of the same ids.
        quick: tokenise with `simple_tokenize` (no Java) instead of the PTB tokenizer.

    Returns:
        The score of each id, in the order of `predictions`.

    Raises:
        ConfigError: Java is needed and missing or failed.
        DataError: the ids differ, or an image has no reference.
    """
    _check_pairs(predictions, references)
    return _cider(*_tokenise(predictions, references, _simple_lines if quick else ptb_tokenize))


def quick_cider(predictions: Mapping[Id, str], references: Mapping[Id, Sequence[str]]) -> float:
    """CIDEr without Java, for validation during training.

    Not comparable with the CIDEr of `score` or of any paper: the tokens are those of
    `simple_tokenize`. Compare it only with itself, on the same images.

    Args:
        predictions: one caption for each image id.
        references: one or more captions for each of the same ids.

    Returns:
        The mean over images.

    Raises:
        DataError: the ids differ, or an image has no reference.
    """
    return mean_of(score_each(predictions, references, quick=True))


def simple_tokenize(text: str) -> list[str]:
    """Split into lower-case words, without brackets and PTB's punctuation; needs no Java.

    Close to the PTB tokenizer on plain English; it differs in contractions (don't), in quotes,
    numbers with signs, and abbreviations.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    dropped = _BRACKETS.union(PUNCTUATIONS, '"')
    return [token for token in _TOKEN.findall(text.lower()) if token not in dropped]


def _simple_lines(lines: Sequence[str]) -> list[str]:
    return [" ".join(simple_tokenize(line)) for line in lines]


def _check_pairs(predictions: Mapping[Id, str], references: Mapping[Id, Sequence[str]]) -> None:
    """Every prediction has its references and the other way round."""
    unpredicted = [key for key in references if key not in predictions]
    unknown = [key for key in predictions if key not in references]
    for keys, lack in ((unpredicted, "no prediction"), (unknown, "no references")):
        if keys:
            raise DataError(
                f"caption scores: {len(keys)} image(s) have {lack}, the first is {keys[0]!r}: "
                "score exactly the images that were captioned (run stages/evaluate.py again)"
            )
    if not predictions:
        raise DataError("caption scores: there are no images: check evaluate.split and its shards")
    for key, captions in references.items():
        if not captions:
            raise DataError(
                f"caption scores: image {key!r} has an empty list of references: "
                "leave it out, or write the shards again with its captions"
            )


def _tokenise(
    predictions: Mapping[Id, str],
    references: Mapping[Id, Sequence[str]],
    tokenize: Callable[[Sequence[str]], list[str]],
) -> Tokenised[Id]:
    """Tokenise all captions in one call, because starting Java takes most of the time."""
    lines = list(predictions.values())
    lines += [caption for key in predictions for caption in references[key]]
    tokens = iter(tokenize(lines))
    tokenised_predictions = {key: next(tokens) for key in predictions}
    tokenised_references = {key: [next(tokens) for _ in references[key]] for key in predictions}
    if not any(any(captions) for captions in tokenised_references.values()):
        raise DataError(
            "caption scores: no reference has a single word: check the captions in the shards"
        )
    return tokenised_predictions, tokenised_references


def _wrap(predictions: Mapping[Id, str]) -> dict[Id, list[str]]:
    """pycocoevalcap wants a list of one prediction."""
    return {key: [prediction] for key, prediction in predictions.items()}


def _bleu(
    predictions: dict[Id, str], references: dict[Id, list[str]]
) -> tuple[dict[str, float], dict[Id, Counts]]:
    """As pycocoevalcap's `Bleu(4)`, whose scorer this is, with what each caption adds."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for key, prediction in predictions.items():
        scorer += (prediction, references[key])
    values, _ = scorer.compute_score(option="closest")
    scores = {f"Bleu_{n}": float(value) for n, value in enumerate(values, start=1)}
    added = (bleu_counts(compared) for compared in scorer.ctest)
    return scores, dict(zip(predictions, added, strict=True))


def _rouge_l(predictions: dict[Id, str], references: dict[Id, list[str]]) -> dict[Id, float]:
    from pycocoevalcap.rouge.rouge import Rouge

    _, values = Rouge().compute_score(references, _wrap(predictions))
    return {key: float(value) for key, value in zip(references, values, strict=True)}


def _cider(predictions: dict[Id, str], references: dict[Id, list[str]]) -> dict[Id, float]:
    from pycocoevalcap.cider.cider import Cider

    _, values = Cider().compute_score(references, _wrap(predictions))
    return {key: float(value) for key, value in zip(references, values, strict=True)}


def mean_of(scores: Mapping[Id, float]) -> float:
    """The run's score from those of images; 0 where no image has one."""
    return sum(scores.values()) / len(scores) if scores else 0.0
