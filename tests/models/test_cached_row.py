"""A row that grows: logits as from scratch, and only what is new goes through the model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.models.cached_row import CachedRow
from pipeline.models.counting import counting
from pipeline.models.folded import folded_pair
from pipeline.models.lavin_model import Lavin
from pipeline.models.multimodal import IMAGE_SLOT, MultimodalLM
from tests.models import tiny
from tests.models.test_lavin import SLOTS, lavin
from tests.models.test_llama_adapter import BOTH, build

FIRST, SECOND = [4, 9, 8], [7, 7, 2, 11]


def embeds_of(model: MultimodalLM, shape: tuple[int, ...]) -> Tensor:
    torch.manual_seed(3)
    with torch.no_grad():
        return model.image_embeddings(features=torch.randn(1, *shape))


def logits_behind(model: MultimodalLM, ids: list[int], embeds: Tensor | None) -> Tensor:
    """Of the last token, by one forward pass without a cache, as in training."""
    row = torch.tensor([ids])
    labels = torch.full_like(row, -100)
    labels[0, -1] = 0
    behind = torch.cat([row, row[:, :1]], 1)  # a target behind the last token
    kind = torch.tensor([-1 if embeds is None else 0])
    with torch.no_grad(), model.seeing(embeds, kind):
        inputs = model.embed(behind, embeds, kind)
        chosen = torch.tensor([len(ids) - 1])
        return model._logits(inputs, torch.ones_like(behind), kind, chosen)[0]


def check_a_conversation(
    model: MultimodalLM, plain: MultimodalLM, opening: list[int], embeds: Tensor | None
) -> None:
    """Grows, answers, is asked again, and again otherwise: equal to `plain`, new tokens alone."""
    row = CachedRow(model, embeds)
    ids, before = list(opening), 0
    with counting(model.llm) as counter:
        for more in ([], [5], [6], SECOND, [3]):
            ids += more
            got = row.next_logits(ids)
            assert counter.take() == (1, len(ids) - before)
            torch.testing.assert_close(got, logits_behind(plain, ids, embeds), atol=2e-5, rtol=1e-4)
            counter.take()
            before = len(ids)
        retried = [*ids[:-4], 12, 13]  # from the second question on, other words
        got = row.next_logits(retried)
        assert counter.take() == (1, 2)
    torch.testing.assert_close(got, logits_behind(plain, retried, embeds), atol=2e-5, rtol=1e-4)
    again = row.next_logits(retried)  # nothing is new: the last token goes through once more
    torch.testing.assert_close(again, got)


@pytest.mark.parametrize("name", sorted(tiny.DECODERS))
@pytest.mark.parametrize("way", ["folded", "as it is", "settled"])
@pytest.mark.parametrize("seen", [False, True])
def test_lavin_goes_on_as_from_scratch(name: str, way: str, seen: bool) -> None:
    plain, model = lavin(tiny.DECODERS[name]()), lavin(tiny.DECODERS[name]())
    if way == "folded":
        model = folded_pair(model)[seen]
    elif way == "settled":
        model.settle()
    embeds = embeds_of(plain, (SLOTS, tiny.FEATURE)) if seen else None
    opening = [1, 5, *[IMAGE_SLOT] * SLOTS, *FIRST] if seen else [1, 6, *FIRST]
    if way == "as it is":  # its passes for the routing would be counted too
        row = CachedRow(model, embeds)
        for ids in (opening, [*opening, 5], [*opening, 5, *SECOND]):
            expected = logits_behind(plain, ids, embeds)
            torch.testing.assert_close(row.next_logits(ids), expected, atol=2e-5, rtol=1e-4)
        return
    check_a_conversation(model, plain, opening, embeds)


@BOTH
@pytest.mark.parametrize("seen", [False, True])
def test_llama_adapter_goes_on_as_from_scratch(tmp_path: Path, version, seen: bool) -> None:
    model = build(tmp_path, "llama", version)
    embeds = embeds_of(model, (tiny.FEATURE,)) if seen else None
    check_a_conversation(model, model, [1, 6, *FIRST], embeds)


def test_a_folded_pair_shares_all_but_the_projections() -> None:
    text, image = folded_pair(lavin(tiny.llama()))
    assert isinstance(text, Lavin) and isinstance(image, Lavin)
    own = {
        name
        for (name, one), (_, other) in zip(
            text.named_parameters(), image.named_parameters(), strict=True
        )
        if one is not other
    }
    assert len(own) == 2 * 3 * 2  # layers, projections, weight and bias
    assert all("_proj" in name for name in own)
