"""Answers ScienceQA's questions by the likelihood of their options, and scores the answers.

One forward pass for a question: its options differ in the letter alone, which stands in one place
behind the same text (one for each option where the tokenizer splits a letter). All ranks share the
questions; rank 0 writes `results.json` in the benchmark's format and `metrics.json`.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.data.collate import LanguageBatch, to_device
from pipeline.data.faults import ContentFault
from pipeline.data.loader import Pass
from pipeline.data.plan import Plan, items_in_order
from pipeline.data.prompts import IGNORE
from pipeline.dist import World, from_main, gather_json, sum_over_ranks
from pipeline.durable import write_json
from pipeline.errors import ConfigError
from pipeline.evaluation.loading import Loaded, chosen_export, load_for_scoring, rows_to_score
from pipeline.evaluation.options import NONE, choose, next_token_scores, sequence_scores
from pipeline.evaluation.results import output_folder
from pipeline.evaluation.scienceqa import Scores, score, write_results
from pipeline.models.multimodal import MultimodalOutput
from pipeline.objectives import outputs_of
from pipeline.splits import Split, open_split
from pipeline.stopping import stoppable
from pipeline.tasks import question_format
from pipeline.validation import language_metrics, skipped_over_ranks

log = logging.getLogger("pipeline")


@dataclass
class Answers:
    """What was chosen: record key -> index of the choice, and what that took."""

    chosen: dict[str, int] = field(default_factory=dict)
    tied: int = 0  # questions of which two options were equally likely
    token_forwards: int = 0  # positions that went through the LLM


def answer_questions(config: Config, world: World) -> dict[str, Any]:
    """Answers `evaluate.split` with the last phase's export; returns what metrics.json holds.

    Every rank calls it.

    Raises:
        ConfigError: no phase is finished, or the format explains before it answers.
    """
    settings = config.evaluate
    if not question_format(config).answers_first:
        raise ConfigError(
            f"scienceqa.format={config.scienceqa.format}: options are compared in the place of the "
            "answer, which must come first; use a format that ends in -A, -AL, -AE or the like"
        )
    export = chosen_export(config, world)
    split = open_split(config, settings.split)
    log.info("evaluate      %s on %s (%d questions)", export, settings.split, split.records)
    began = time.perf_counter()
    loaded = load_for_scoring(config, export, split, world)
    plan = split.in_order(settings.batch * world.size, settings.records)
    explained = Pass(
        rows_to_score(config, loaded.built, split, plan, world, "all"), config.data.workers
    )
    loss = language_metrics(loaded.forward, explained(), world, loaded.dtype)["loss"]
    asked = Pass(
        rows_to_score(config, loaded.built, split, plan, world, "options"), config.data.workers
    )
    answers = _gathered(_choose(loaded, asked, world), world)
    skipped = skipped_over_ranks(asked.faults, world)
    result: dict[str, Any] = {}
    if world.is_main:
        measured = {"export": str(export), "loss": loss, "skipped": dict(skipped)}
        result = _write(config, split, plan, answers, measured)
        log.info("evaluate      took %.0f s", time.perf_counter() - began)
    return dict(from_main(result, world))


@torch.no_grad()
def _choose(loaded: Loaded, asked: Pass, world: World) -> Answers:
    """This rank's answers; as many forward passes on every rank, dummies included."""
    answers = Answers()
    for batch in stoppable(asked(), world):
        moved = to_device(batch, world.device, loaded.dtype)
        assert isinstance(moved, LanguageBatch)
        out = outputs_of(loaded.built.model, moved)
        answers.token_forwards += int(moved.attention_mask.sum())
        if moved.keys:
            for owner, index, tied in _compared(out, moved):
                answers.chosen[moved.keys[owner]] = index
                answers.tied += tied
    return answers


def _compared(out: MultimodalOutput, batch: LanguageBatch) -> Iterator[tuple[int, int, bool]]:
    """(number of the record in `keys`, chosen option, whether another was as likely)."""
    target = batch.labels[:, 1:] != IGNORE  # (R, T - 1)
    together = torch.zeros_like(batch.owner, dtype=torch.bool)  # (R,) all options in one place
    if batch.options is not None:
        together = batch.options[:, 0] != NONE
        logits = out.logits[together[target.nonzero()[:, 0]]]
        scores = next_token_scores(logits, batch.options[together])
        yield from _chosen(batch.owner[together], scores)
    alone = ~together
    if bool(alone.any()):
        chosen = out.logits.float().log_softmax(-1).gather(1, out.labels[:, None]).squeeze(1)
        log_probs = torch.zeros(target.shape, device=target.device)
        log_probs[target] = chosen
        owners, question = torch.unique_consecutive(batch.owner[alone], return_inverse=True)
        yield from _chosen(owners, sequence_scores(log_probs[alone], target[alone], question))


def _chosen(owners: Tensor, scores: Tensor) -> Iterator[tuple[int, int, bool]]:
    choices = choose(scores)
    yield from zip(owners.tolist(), choices.index.tolist(), choices.tied.tolist(), strict=True)


def _gathered(mine: Answers, world: World) -> Answers:
    """The answers of all ranks."""
    chosen = {k: index for each in gather_json(mine.chosen, world) for k, index in each.items()}
    tied, forwards = sum_over_ranks([mine.tied, mine.token_forwards], world)
    return Answers(chosen, int(tied), int(forwards))


def _write(
    config: Config, split: Split, plan: Plan, answers: Answers, measured: dict[str, Any]
) -> dict[str, Any]:
    problems, predictions = _by_pid(split, plan, answers)
    scores = score(problems, predictions)
    folder = output_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder / "results.json", scores, predictions)
    result = {
        "split": config.evaluate.split,
        "records": len(problems),
        **measured,
        "answers": "likelihood of the options",
        "tied": answers.tied,
        "token_forwards": answers.token_forwards,
        "scores": _numbers(scores),
        "benchmark": scores.as_dict(),
        "table": scores.table(),
    }
    write_json(folder / "metrics.json", result)
    return result


def _by_pid(
    split: Split, plan: Plan, answers: Answers
) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """pid -> problem, and pid -> answer, of the questions that could be read."""
    reader = split.reader
    problems: dict[str, dict[str, Any]] = {}
    predictions: dict[str, int] = {}
    for shard, record in items_in_order(plan):
        try:
            raw = reader.read(shard, record)
        except ContentFault:
            continue  # counted when it was to be asked
        pid = str(raw.data["pid"])
        problems[pid] = raw.data
        if raw.key in answers.chosen:
            predictions[pid] = answers.chosen[raw.key]
    return problems, predictions


def _numbers(scores: Scores) -> dict[str, float]:
    """Every accuracy in percent that there is."""
    accuracy: dict[str, float | None] = scores.as_dict()["accuracy"]
    return {name: value for name, value in accuracy.items() if value is not None}
