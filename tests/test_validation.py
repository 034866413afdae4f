"""What a validation measures over all ranks' batches, and when there is nothing to measure."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.data.collate import ContrastiveCollator, Sample
from pipeline.dist import World
from pipeline.errors import DataError
from pipeline.validation import retrieval_features

ALONE = World(0, 1, 0, 1, torch.device("cpu"))
SHAPE = (3, 2, 2)


def tokens(texts: list[str], context_length: int = 4) -> Tensor:
    return torch.arange(len(texts))[:, None].expand(-1, context_length)


def forward(batch: Any) -> tuple[Tensor, Tensor, None]:
    return batch.images.flatten(1)[batch.image_rows], batch.text.float(), None


def test_records_without_an_image_are_no_pairs_and_none_at_all_is_said() -> None:
    collate = ContrastiveCollator(tokens, SHAPE)
    text = Sample("1", 0, ("a text",), None)
    seen = Sample("2", 1, ("one", "other"), torch.ones(SHAPE))
    found = retrieval_features(
        forward, [collate([text]), collate([text, seen])], ALONE, torch.float32
    )
    image, texts, owner, records = found
    assert len(image) == 1 and len(texts) == 2 and owner.tolist() == [0, 0]
    assert records.tolist() == [1]
    with pytest.raises(DataError, match=r"no record has an image.*encoder_adapt\.enabled=false"):
        retrieval_features(forward, [collate([text]), collate([])], ALONE, torch.float32)
