"""Metrics of a model over a split, on all ranks: validation loss, features for retrieval.

Takes any callable that does the task's forward pass (an engine, or the plain task module), and
batches of which every rank has equally many. A stop that is asked for breaks it off (Stopped).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pipeline.data.collate import Batch, ContrastiveBatch, LanguageBatch, to_device
from pipeline.dist import World, gather_json, gather_rows, sum_over_ranks
from pipeline.errors import DataError
from pipeline.stopping import stoppable

Forward = Callable[[Any], Any]


def skipped_over_ranks(faults: Counter[str], world: World) -> Counter[str]:
    """Records that all ranks together could not use, by reason; every rank calls it."""
    total: Counter[str] = Counter()
    for each in gather_json(dict(faults), world):
        total.update(each)
    return total


@torch.no_grad()
def language_metrics(
    forward: Forward, batches: Iterable[Batch], world: World, dtype: torch.dtype
) -> dict[str, float]:
    """Loss a target token and perplexity over all ranks' batches, without smoothing.

    forward: a `LanguageTask` in eval mode: batch -> (sum of token losses, ...).
    """
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    tokens = 0.0
    for batch in stoppable(batches, world):
        moved = to_device(batch, world.device, dtype)
        assert isinstance(moved, LanguageBatch)
        total += forward(moved)[0].double()
        tokens += float(moved.weights.sum())
    loss, count = sum_over_ranks([float(total), tokens], world)
    mean = loss / max(count, 1.0)
    return {"loss": mean, "perplexity": math.exp(min(mean, 700.0))}


@torch.no_grad()
def retrieval_features(
    forward: Forward, batches: Iterable[Batch], world: World, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What recall is computed from, gathered over all ranks.

    forward: a `ContrastiveTask` in eval mode. Returns the images' features (I, E), the texts'
    (N, E), each text's image as a row of the first (N,), and the images' record numbers (I,), which
    ascend. Raises DataError, on every rank, where no record has an image.
    """
    found: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for batch in stoppable(batches, world):
        moved = to_device(batch, world.device, dtype)
        assert isinstance(moved, ContrastiveBatch)
        image, text, _ = forward(moved)
        real = moved.identity[:, 0] >= 0
        for kept, each in zip(found, (image, text, moved.identity[:, 0]), strict=True):
            kept.append(each[real])
    image, text, record = (torch.cat(gather_rows(torch.cat(each), world)) for each in found)
    if not len(record):
        raise DataError(
            "no record has an image, so there are no pairs to compare: look at more "
            "(encoder_adapt.val_records), or set encoder_adapt.enabled=false"
        )
    records, text_image = torch.unique(record, return_inverse=True)
    order = torch.arange(len(record), device=record.device)
    first = torch.full((len(records),), len(record), device=record.device)
    first = first.scatter_reduce(0, text_image, order, "amin")
    return image[first], text, text_image, records
