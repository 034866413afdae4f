"""LaVIN against the reference implementation's numbers, and the fast way against the plain one."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.models.official_lavin import rename
from tests.models import lavin_golden


def every_logit(model, row: dict[str, Tensor]) -> Tensor:
    """(T - 1, V): the logits of every place but the last, through the model's own forward."""
    ids = row["input_ids"]
    labels = torch.zeros_like(ids)
    out = model(**{**row, "labels": labels, "weights": torch.ones_like(ids, dtype=torch.float32)})
    return out.logits


@pytest.mark.parametrize("name", ["lavin_image", "lavin_text"])
def test_outputs_and_gradients_equal_the_reference(name: str) -> None:
    model = lavin_golden.model()
    tensors, _ = lavin_golden.read(name)
    row, _ = lavin_golden.sequence(tensors)
    if "images" in row:
        embeds = model.image_embeddings(row["images"])
        torch.testing.assert_close(embeds, tensors["output.image_embeds"], atol=1e-5, rtol=0)
    # Places 1 to T - 2 of the reference's layout: its first is the modality token, and a last row
    # predicts nothing.
    logits = every_logit(model, row)
    expected = tensors["output.logits"][0]
    torch.testing.assert_close(logits, expected[1 : 1 + len(logits)], atol=1e-5, rtol=0)

    labels = row["labels"][0, 1:]
    # The reference ignores label 0.
    loss = F.cross_entropy(logits, labels, ignore_index=0)
    torch.testing.assert_close(loss[None], tensors["output.loss"], atol=1e-5, rtol=0)
    loss.backward()
    gradients, unknown = rename(lavin_golden.behind("grad.", tensors))
    assert not unknown
    parameters = dict(model.named_parameters())
    assert len(gradients) == {"lavin_image": 5 + 11 * 8, "lavin_text": 1 + 3 * 8}[name]
    for ours, value in gradients.items():
        got = parameters[ours].grad
        assert got is not None, ours
        assert (got - value).norm() <= 1e-4 * value.norm(), ours
