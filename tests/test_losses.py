"""The losses against definitions written out by hand."""

import math

import torch
import torch.nn.functional as F

from pipeline.losses import alignment_loss, contrastive_loss, language_loss, sigmoid_loss


def test_language_loss_is_a_weighted_sum() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 7), torch.tensor([1, 2, 3, 0])
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0])
    each = -F.log_softmax(logits, -1)[range(4), labels]
    torch.testing.assert_close(language_loss(logits, labels, weights), (each * weights).sum())


def test_label_smoothing_spreads_over_the_vocabulary() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5), torch.tensor([4, 0])
    log = F.log_softmax(logits, -1)
    expected = -(0.9 * log[range(2), labels] + 0.1 * log.mean(-1)).sum()
    found = language_loss(logits, labels, torch.ones(2), label_smoothing=0.1)
    torch.testing.assert_close(found, expected)


def test_no_target_gives_zero() -> None:
    empty = language_loss(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    assert float(empty) == 0.0


def test_alignment_is_zero_for_parallel_and_two_for_opposite() -> None:
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    y = torch.tensor([[2.0, 4.0], [-1.0, -2.0]])
    assert math.isclose(float(alignment_loss(x, y, torch.ones(2))), 2.0, abs_tol=1e-6)
    assert float(alignment_loss(x, y, torch.tensor([1.0, 0.0]))) < 1e-6


def by_hand(image, text, scale, identity) -> float:
    """Radford et al., figure 3, leaving out a row's own other captions and identical texts."""
    total = 0.0
    for i in range(len(image)):
        kept = [
            j
            for j in range(len(image))
            if j == i or not (identity[i][0] == identity[j][0] or identity[i][1] == identity[j][1])
        ]
        for own, others in ((image, text), (text, image)):
            scores = [float(scale * own[i] @ others[j]) for j in kept]
            total += (math.log(sum(map(math.exp, scores))) - float(scale * own[i] @ others[i])) / 2
    return total


def test_contrastive_loss_by_hand() -> None:
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(6, 4), dim=-1) for _ in range(2))
    # Records 1 and 1 share an image; rows 0 and 4 have the same text.
    identity = torch.tensor([[0, 9], [1, 2], [1, 3], [2, 4], [3, 9], [4, 5]])
    scale = torch.tensor(5.0)
    whole = contrastive_loss(image, text, scale, identity, rows=slice(0, 6))
    assert math.isclose(float(whole), by_hand(image, text, scale, identity), rel_tol=1e-5)
    parts = [
        contrastive_loss(image, text, scale, identity, rows=slice(a, b))
        for a, b in ((0, 2), (2, 2), (2, 6))
    ]
    torch.testing.assert_close(sum(parts), whole)


def siglip_by_hand(image, text, scale, bias, identity) -> float:
    """Zhai et al., 2023, algorithm 1, leaving out other captions of a record and equal texts."""
    total = 0.0
    for i in range(len(image)):
        for j in range(len(text)):
            related = identity[i][0] == identity[j][0] or identity[i][1] == identity[j][1]
            if i != j and related:
                continue
            sign = 1 if i == j else -1
            logit = sign * float(scale * image[i] @ text[j] + bias)
            total += math.log(1 + math.exp(-logit))
    return total


def test_sigmoid_loss_by_hand() -> None:
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(6, 4), dim=-1) for _ in range(2))
    identity = torch.tensor([[0, 9], [1, 2], [1, 3], [2, 4], [3, 9], [4, 5]])
    constants = torch.tensor([5.0, -2.0])
    whole = sigmoid_loss(image, text, constants, identity, rows=slice(0, 6))
    expected = siglip_by_hand(image, text, *constants, identity)
    assert math.isclose(float(whole), expected, rel_tol=1e-5)
    parts = [
        sigmoid_loss(image, text, constants, identity, rows=slice(a, b))
        for a, b in ((0, 2), (2, 2), (2, 6))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_sigmoid_loss_without_exceptions_is_the_papers_pseudocode() -> None:
    torch.manual_seed(1)
    n = 5
    image, text = (F.normalize(torch.randn(n, 8), dim=-1) for _ in range(2))
    labels = 2 * torch.eye(n) - torch.ones(n, n)
    logits = image @ text.T * 10.0 - 10.0
    expected = -F.logsigmoid(labels * logits).sum() / n
    identity = torch.arange(n)[:, None].expand(n, 2)
    constants = torch.tensor([10.0, -10.0])
    found = sigmoid_loss(image, text, constants, identity, rows=slice(0, n)) / n
    torch.testing.assert_close(found, expected)
