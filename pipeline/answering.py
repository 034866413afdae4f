"""A model's answers to questions, this rank's share: the likeliest option, or what it generates.

By likelihood a batch takes one forward pass: the options of a question differ in the letter alone,
which stands in one place behind the same text (one row for each option where the tokenizer splits a
letter). Every rank makes equally many calls, dummies included, so models in ZeRO-3 partitions
answer too. Reads no answer out of a text and scores nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipeline.captioning import continuations
from pipeline.config import EvaluateConfig
from pipeline.data.collate import Batch, LanguageBatch, to_device
from pipeline.data.prompts import IGNORE
from pipeline.dist import World, gather_json
from pipeline.evaluation.cost import Cost
from pipeline.evaluation.options import NONE, choose, next_token_scores, sequence_scores
from pipeline.models.counting import counting
from pipeline.models.multimodal import MultimodalLM, MultimodalOutput
from pipeline.objectives import outputs_of


@dataclass
class Answers:
    """What was answered, by record key, and what that took."""

    chosen: dict[str, int] = field(default_factory=dict)  # by likelihood: index of the choice
    texts: dict[str, str] = field(default_factory=dict)  # generated
    tied: int = 0  # questions of which two options were equally likely
    cut: list[str] = field(default_factory=list)  # of `texts`, those without an end
    cost: Cost = field(default_factory=Cost)

    def over_ranks(self, world: World) -> "Answers":
        """The answers of all ranks; every rank calls it."""
        mine = [self.chosen, self.texts, self.tied, self.cut, vars(self.cost)]
        whole = Answers()
        for chosen, texts, tied, cut, cost in gather_json(mine, world):
            whole.chosen |= chosen
            whole.texts |= texts
            whole.tied += tied
            whole.cut += cut
            whole.cost += Cost(**cost)
        return whole


@torch.no_grad()
def choose_options(
    model: MultimodalLM, batches: Iterable[Batch], *, device: torch.device, dtype: torch.dtype
) -> Answers:
    """The likeliest options, from batches of `ScoringRows`."""
    answers = Answers()
    with counting(model.llm) as counter:
        for batch in batches:
            moved = to_device(batch, device, dtype)
            assert isinstance(moved, LanguageBatch)
            out = outputs_of(model, moved)
            passes, positions = counter.take()
            if not moved.keys:
                continue
            for owner, index, tied in compared(out, moved):
                answers.chosen[moved.keys[owner]] = index
                answers.tied += tied
            prompts = _before_the_options(moved)
            answers.cost += Cost(1, len(moved.keys), passes, positions, prompts)
    return answers


def generate_answers(
    model: MultimodalLM,
    batches: Iterable[Batch],
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluateConfig,
    **how: Any,
) -> Answers:
    """What is generated, from batches of `AskingRows`. how: as `captioning.continuations` takes."""
    answers = Answers()
    with counting(model.llm) as counter:
        for each in continuations(model, batches, tokenizer, settings, **how):
            passes, positions = counter.take()
            keys = each.batch.keys
            if not keys:
                continue
            answers.texts |= dict(zip(keys, each.texts, strict=True))
            answers.cut += [key for key, end in zip(keys, each.ended, strict=True) if not end]
            prompts = int(each.batch.attention_mask.sum())
            answers.cost += Cost(1, len(keys), passes, positions, prompts)
    return answers


def compared(out: MultimodalOutput, batch: LanguageBatch) -> list[tuple[int, int, bool]]:
    """(number of the record in `keys`, chosen option, whether another was as likely).

    One for each question, in their order; a record may have several.
    """
    target = batch.labels[:, 1:] != IGNORE  # (R, T - 1)
    together = torch.zeros_like(batch.owner, dtype=torch.bool)  # (R,) all options in one place
    found: dict[int, tuple[int, int, bool]] = {}  # by question
    if batch.options is not None:
        together = batch.options[:, 0] != NONE
        logits = out.logits[together[target.nonzero()[:, 0]]]
        scores = next_token_scores(logits, batch.options[together])
        found |= _chosen(batch, together, scores)
    alone = ~together
    if bool(alone.any()):
        chosen = out.logits.float().log_softmax(-1).gather(1, out.labels[:, None]).squeeze(1)
        log_probs = torch.zeros(target.shape, device=target.device)
        log_probs[target] = chosen
        _, question = torch.unique_consecutive(batch.question[alone], return_inverse=True)
        scores = sequence_scores(log_probs[alone], target[alone], question)
        found |= _chosen(batch, alone & _starts(batch), scores)
    return [found[question] for question in sorted(found)]


def _chosen(batch: LanguageBatch, rows: Tensor, scores: Tensor) -> dict[int, tuple[int, int, bool]]:
    """By question; rows: (R,) one of each question that was scored, scores: (Q, O)."""
    choices = choose(scores)
    columns = (batch.owner[rows], choices.index, choices.tied)
    answers = zip(*(column.tolist() for column in columns), strict=True)
    return dict(zip(batch.question[rows].tolist(), answers, strict=True))


def _starts(batch: LanguageBatch) -> Tensor:
    """(R,) whether a row is the first of its question."""
    first = torch.ones_like(batch.question, dtype=torch.bool)
    first[1:] = batch.question[1:] != batch.question[:-1]
    return first


def _before_the_options(batch: LanguageBatch) -> int:
    """Positions of one row for each question, without the option's own tokens."""
    shown = (batch.attention_mask.bool() & (batch.labels == IGNORE)).sum(1)  # (R,)
    return int(shown[_starts(batch)].sum())
