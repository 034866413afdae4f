"""BLEU and METEOR of a corpus from sums over its captions: they are no means over captions.

What a caption adds to the sums is a few numbers, from which the score of any part of the corpus can
be had, and so of any draw of captions. Pure functions; the texts were compared elsewhere.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLEU, METEOR = "Bleu", "METEOR"  # what counts are called; of one or several scores

Counts = tuple[float, ...]
Formula = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # sums (..., K) -> scores (...)

_ORDERS = 4
# Against a division by zero; SOURCE: pycocoevalcap/bleu/bleu_scorer.py (`compute_score`).
_TINY, _SMALL = 1e-15, 1e-9

# SOURCE: Denkowski & Lavie 2014, METEOR 1.5, its parameters for English ("rank").
_RECALL, _STEEPNESS, _PENALTY, _CONTENT = 0.85, 0.2, 0.6, 0.75
_MATCHERS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase


def bleu_counts(compared: Mapping[str, Any]) -> Counts:
    """What a caption adds: its length, the closest reference's, n-grams, n-grams that are right.

    compared: a caption of pycocoevalcap's scorer (`cook_test`).
    """
    said: int = compared["testlen"]
    closest = min(compared["reflen"], key=lambda true: (abs(true - said), true))
    return (said, closest, *compared["guess"], *compared["correct"])


def bleu(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bleu_1 to Bleu_4, (..., 4), of sums of `bleu_counts`, (..., 10)."""
    said, true = sums[..., 0], sums[..., 1]
    guessed, right = sums[..., 2 : 2 + _ORDERS], sums[..., 2 + _ORDERS :]
    precisions = (right + _TINY) / (guessed + _SMALL)
    means = np.cumprod(precisions, axis=-1) ** (1 / np.arange(1, _ORDERS + 1))
    ratio = (said + _TINY) / (true + _SMALL)
    brevity: NDArray[np.float64] = np.exp(np.minimum(1 - 1 / ratio, 0))
    found: NDArray[np.float64] = means * brevity[..., None]
    return found


def meteor_counts(statistics: str) -> Counts:
    """What a caption adds: weighted matches and words (said, true of each), chunks, matched words.

    Args:
        statistics: METEOR's own line for a caption: words and function words (said, true of each);
            by matcher, matches of content words and of function words; chunks; matched words.
    """
    found = np.array([float(each) for each in statistics.split()])
    words, function = found[:2], found[2:4]
    of_matchers = found[4:20].reshape(4, 2, 2)  # matcher; content or function; said or true
    weights = np.array([_CONTENT, 1 - _CONTENT])
    matches = np.einsum("m,w,mwt->t", _MATCHERS, weights, of_matchers)
    lengths = weights[0] * (words - function) + weights[1] * function
    chunks, matched = found[20], found[21:23]
    # A caption that is its reference is in no pieces.
    pieces = 0.0 if chunks == 1 and (matched == words).all() else chunks
    return (*matches.tolist(), *lengths.tolist(), float(pieces), float(matched.mean()))


def meteor(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """METEOR, (...), of sums of `meteor_counts`, (..., 6)."""
    right_said, right_true, said, true, chunks, matched = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = right_said / said, right_true / true
        mean = 1 / ((1 - _RECALL) / precision + _RECALL / recall)
        penalty = _PENALTY * (chunks / matched) ** _STEEPNESS
    found: NDArray[np.float64] = np.nan_to_num(mean * (1 - penalty))  # nothing matches: 0
    return found


def _bleu_of(order: int) -> Formula:
    return lambda sums: bleu(sums)[..., order - 1]


# Score -> its counts' name, and how it comes from their sums.
FORMULAS: Mapping[str, tuple[str, Formula]] = {
    **{f"Bleu_{order}": (BLEU, _bleu_of(order)) for order in range(1, _ORDERS + 1)},
    METEOR: (METEOR, meteor),
}
