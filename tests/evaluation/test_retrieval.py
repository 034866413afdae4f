"""Retrieval recall against a brute-force count, and the ties that must not be rewarded."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.evaluation import retrieval
from pipeline.evaluation.retrieval import recall_at_k


def brute_force(images: Tensor, texts: Tensor, owner: Tensor, k: int) -> tuple[float, float]:
    """Sort every query's candidates, one query after the other."""
    similarity = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    found_texts = [
        bool((owner[row.argsort(descending=True)[:k]] == index).any())
        for index, row in enumerate(similarity)
    ]
    found_images = [
        bool((row.argsort(descending=True)[:k] == owner[index]).any())
        for index, row in enumerate(similarity.T)
    ]
    return sum(found_texts) / len(found_texts), sum(found_images) / len(found_images)


@pytest.mark.parametrize("chunk_elements", [1, 100, 1 << 24])
def test_agrees_with_brute_force(chunk_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "CHUNK_ELEMENTS", chunk_elements)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(23, 16, generator=generator)
    owner = torch.cat([torch.arange(23), torch.randint(23, (40,), generator=generator)])
    owner = owner[torch.randperm(len(owner), generator=generator)]
    texts = images[owner] + 2 * torch.randn(len(owner), 16, generator=generator)
    result = recall_at_k(images, texts, owner, ks=(1, 3, 10))
    assert list(result) == ["i2t_r1", "i2t_r3", "i2t_r10", "t2i_r1", "t2i_r3", "t2i_r10"]
    for k in (1, 3, 10):
        expected = brute_force(images, texts, owner, k)
        assert (result[f"i2t_r{k}"], result[f"t2i_r{k}"]) == pytest.approx(expected)
    assert 0 < result["t2i_r1"] < 1


def test_perfect_towers_and_any_scale() -> None:
    images = torch.eye(6)
    owner = torch.arange(6).repeat_interleave(2)
    result = recall_at_k(images * 7, images[owner] * 0.1, owner, ks=(1,))
    assert result == {"i2t_r1": 1.0, "t2i_r1": 1.0}


@pytest.mark.parametrize("collapsed", [torch.ones(8), torch.zeros(8), torch.full((8,), torch.nan)])
def test_collapsed_towers_score_nothing(collapsed: Tensor) -> None:
    features = collapsed.expand(12, 8)
    result = recall_at_k(features, features, torch.arange(12))
    assert result == dict.fromkeys(result, 0.0)


def test_collapse_up_to_rounding_scores_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.ones(500, 64) + 1e-8 * torch.randn(500, 64, generator=generator)
    result = recall_at_k(features, features * 3, torch.arange(500), ks=(1,))
    assert result == {"i2t_r1": 0.0, "t2i_r1": 0.0}


def test_own_captions_do_not_compete_with_each_other() -> None:
    # Both captions of image 0 are the same; a third one belongs to image 1.
    images, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    result = recall_at_k(images, texts, torch.tensor([0, 0, 1]), ks=(1,))
    assert result == {"i2t_r1": 1.0, "t2i_r1": 1.0}


def test_half_precision_features() -> None:
    images = torch.eye(4, dtype=torch.bfloat16)
    assert recall_at_k(images, images, torch.arange(4), ks=(1,))["i2t_r1"] == 1.0


@pytest.mark.parametrize(
    ("texts", "owner"),
    [
        (torch.zeros(3, 5), torch.arange(3)),  # another width
        (torch.zeros(3, 4), torch.arange(2)),  # not one owner per text
        (torch.zeros(3, 4), torch.tensor([0, 1, 1])),  # image 2 has no text
        (torch.zeros(3, 4), torch.tensor([0, 1, 3])),  # image 3 does not exist
    ],
)
def test_what_does_not_fit_is_refused(texts: Tensor, owner: Tensor) -> None:
    with pytest.raises(ValueError, match="text_image"):
        recall_at_k(torch.zeros(3, 4), texts, owner)
