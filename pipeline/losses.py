"""The losses of the three phases, as sums over their terms.

A sum, not a mean: the trainer divides by the *global* number of targets, so that the loss does not
depend on ranks, micro-batches or padding. Pure functions of tensors; no models, no communication.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def language_loss(
    logits: Tensor, labels: Tensor, weights: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Weighted sum of the cross-entropies of the target tokens, in float32.

    logits: (N, V); labels: (N,) token ids; weights: (N,), 0 for a dummy. With label smoothing e the
    target is (1 - e) on the label and e spread evenly over the vocabulary (Szegedy et al., 2016).
    """
    each = F.cross_entropy(
        logits.float(), labels, reduction="none", label_smoothing=label_smoothing
    )
    return (each * weights).sum()


def alignment_loss(prefix_mean: Tensor, text_mean: Tensor, weights: Tensor) -> Tensor:
    """Sum over rows of 1 - cos(mean ST output, mean input embedding of the caption).

    prefix_mean, text_mean: (R, D); weights: (R,), 0 for a dummy or a row without an image. Our
    reading of EIM's "aligning the semantic spaces": the prefix is drawn to where captions live.
    """
    cosine = F.cosine_similarity(prefix_mean.float(), text_mean.float(), dim=-1)
    return ((1 - cosine) * weights).sum()


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    scale: Tensor,
    identity: Tensor,
    *,
    rows: slice,
) -> Tensor:
    """Symmetric InfoNCE of this rank's rows against the whole global batch, as a sum over rows.

    image_features, text_features: (B, E), L2-normalised, row r is a pair; scale: scalar, the
    inverse temperature; identity: (B, 2) long, of the record and of its text; rows: the own rows.
    Another caption of the same record, and an identical text, are no negatives: they are left out
    of the row's softmax. Radford et al., "Learning Transferable Visual Models", 2021, figure 3,
    with that exception.
    """
    targets = torch.arange(rows.start, rows.stop, device=identity.device)
    excluded, _ = _others_and_itself(identity, rows)
    to_text = scale * image_features[rows] @ text_features.T
    to_image = scale * text_features[rows] @ image_features.T
    total = to_text.new_zeros(())
    for logits in (to_text, to_image):
        masked = logits.float().masked_fill(excluded, float("-inf"))
        total = total + F.cross_entropy(masked, targets, reduction="sum") / 2
    return total


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    constants: Tensor,
    identity: Tensor,
    *,
    rows: slice,
) -> Tensor:
    """SigLIP: each image of the own rows with each text is a pair or none, as a sum over rows.

    constants: (2,), the inverse temperature t and the bias b; the rest as in `contrastive_loss`,
    whose exception holds here too: what is no negative is no positive either, it is left out.
    The sum of -log sigmoid(z (t x.y + b)) with z = 1 for pairs and -1 otherwise: Zhai et al.,
    "Sigmoid Loss for Language Image Pre-Training", 2023, algorithm 1.
    """
    scale, bias = constants.float().unbind()
    excluded, itself = _others_and_itself(identity, rows)
    # In float32: in bfloat16, numbers about the bias are 1/16 apart.
    logits = scale * (image_features[rows] @ text_features.T).float() + bias  # (b, B)
    each = -F.logsigmoid(torch.where(itself, logits, -logits))
    return each.masked_fill(excluded, 0.0).sum()


def _others_and_itself(identity: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """(b, B) masks for the own rows: other rows of the same record or text; the row itself."""
    own_record, own_text = identity[rows].unbind(1)
    same = (own_record[:, None] == identity[None, :, 0]) | (own_text[:, None] == identity[:, 1])
    targets = torch.arange(rows.start, rows.stop, device=identity.device)
    itself = F.one_hot(targets, len(identity)).bool()
    return same & ~itself, itself
