"""Which option a language model finds most likely: from log-probabilities to a choice.

Pure functions of tensors; the forward pass, and which tokens an option is (`OptionRow` of
`data/scienceqa_rows.py`), come from outside. An option's score is the log-probability of its
tokens behind the question, summed: it is compared as "The answer is A" against "The answer is B",
texts of which the letter alone differs, so the sum is the odds of the letters as the model sees
them. (A mean over tokens would favour the letter that a tokenizer happens to split; it is meant for
options of different length, such as the choices' own texts.) The probability of what follows the
letter is left out, it is not about the choice.

Assumes that an option's tokens are scored under the same prompt as its rivals'.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NONE = -1


@dataclass(frozen=True)
class Choices:
    """What was chosen, question by question.

    Attributes: index: (Q,) the best option, NONE where no score is a number; tied: (Q,) whether
    another option is as likely, so that the first of them was taken.
    """

    index: Tensor
    tied: Tensor


def option_table(options: Sequence[Sequence[Sequence[int]]]) -> Tensor | None:
    """The ids of single-token options, (Q, O), NONE where a question has fewer than O.

    Returns None where any option is of several tokens: then each needs a row of its own.
    """
    if any(len(ids) != 1 for question in options for ids in question):
        return None
    most = max(map(len, options), default=0)
    rows = [[ids[0] for ids in question] + [NONE] * (most - len(question)) for question in options]
    return torch.tensor(rows, dtype=torch.long).reshape(len(options), most)


def next_token_scores(logits: Tensor, options: Tensor) -> Tensor:
    """Scores of single-token options from one forward pass for a question.

    Args:
        logits: (Q, V), of the token behind the row; any float type. Given in bfloat16 they tie
            often: three digits cannot tell neighbours apart.
        options: (Q, O) token ids, NONE where there is no such option.

    Returns:
        (Q, O) log-probabilities in float32, -inf where there is no option.
    """
    log_probs = logits.float().log_softmax(-1)
    return log_probs.gather(1, options.clamp(min=0)).masked_fill(options == NONE, -torch.inf)


def sequence_scores(log_probs: Tensor, mask: Tensor, question: Tensor) -> Tensor:
    """Scores of options of any length, each in a row of its own.

    Args:
        log_probs: (N, T), of the token that stands at each position, in any float type.
        mask: (N, T) bool, true at the option's own tokens; every row has at least one.
        question: (N,) long, ascending from 0: which question a row belongs to. Options of a
            question follow one another in their order.

    Returns:
        (Q, O) sums in float32, -inf where a question has fewer than O options.
    """
    assert bool(mask.any(1).all()), "an option without a token"
    # Not a product: what is masked may be anything, infinite too.
    sums = log_probs.float().masked_fill(~mask, 0.0).sum(1)
    counts = torch.bincount(question)
    if not len(counts):
        return sums.new_empty(0, 0)
    first = counts.cumsum(0) - counts
    place = torch.arange(len(question), device=question.device) - first[question]
    table = sums.new_full((len(counts), int(counts.max())), -torch.inf)
    table[question, place] = sums
    return table


def choose(scores: Tensor) -> Choices:
    """The likeliest option of each question, of equals the first.

    scores: (Q, O), -inf where there is no option; what is not a number is never chosen.
    """
    if not scores.shape[1]:
        none = torch.full((len(scores),), NONE, device=scores.device)
        return Choices(none, none != NONE)
    usable = scores.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
    best = usable.amax(1, keepdim=True)
    equal = (usable == best) & torch.isfinite(best)
    # Not argmax: which of several equals it returns is not promised.
    order = torch.arange(scores.shape[1], device=scores.device).expand_as(equal)
    first = order.masked_fill(~equal, scores.shape[1]).amin(1)
    index = first.masked_fill(~equal.any(1), NONE)
    return Choices(index, equal.sum(1) > 1)
