"""Batches: padding, targets, image rows, and dummies that weigh nothing."""

import open_clip
import torch

from pipeline.data.collate import (
    ContrastiveCollator,
    LanguageCollator,
    Sample,
    text_id,
    to_device,
)
from pipeline.data.prompts import IGNORE, Row

SLOT = -1
DUMMY = Row([1, 1], [IGNORE, 1])


def layout(text: str) -> Row:
    ids = [SLOT, SLOT, *map(ord, text), 1]
    return Row(ids, [IGNORE, IGNORE, *ids[2:]], cut=len(text) > 3)


def sample(key: str, *texts: str, image: bool = True) -> Sample:
    pixels = torch.full((3, 2, 2), float(key)) if image else None
    return Sample(key, int(key), texts, pixels, tuple(map(layout, texts)))


def test_rows_are_padded_on_the_right_and_only_text_is_a_target() -> None:
    batch = LanguageCollator((3, 2, 2), pad_id=9, dummy=DUMMY)(
        [sample("1", "ab", "c"), sample("2", "d")]
    )
    assert batch.input_ids.tolist() == [
        [SLOT, SLOT, 97, 98, 1],
        [SLOT, SLOT, 99, 1, 9],
        [SLOT, SLOT, 100, 1, 9],
    ]
    assert batch.labels[0].tolist() == [IGNORE, IGNORE, 97, 98, 1]
    assert batch.labels[1].tolist() == [IGNORE, IGNORE, 99, 1, IGNORE]
    assert batch.image_rows.tolist() == [0, 0, 1]
    assert batch.images.shape == (2, 3, 2, 2) and batch.features is None
    assert batch.weights.sum() == 7


def test_samples_without_an_image_have_no_image_row() -> None:
    collate = LanguageCollator((3, 2, 2), pad_id=9, dummy=DUMMY)
    batch = collate([sample("1", "a", image=False), sample("2", "b")])
    assert batch.image_rows.tolist() == [-1, 0]
    assert len(batch.images) == 1


def test_text_alone_comes_with_a_black_image_of_no_row() -> None:
    alone = [sample("1", "a", image=False), sample("2", "b", image=False)]
    for shape, field in (((3, 2, 2), "images"), ((4,), "features"), ((2, 4), "features")):
        batch = LanguageCollator(shape, pad_id=9, dummy=DUMMY)(alone)
        seen = {"images": batch.images, "features": batch.features}
        assert seen.pop(field).tolist() == torch.zeros(1, *shape).tolist()
        assert list(seen.values()) == [None] and batch.image_rows.tolist() == [-1, -1]
    batch = LanguageCollator((), pad_id=9, dummy=DUMMY)(alone)
    assert batch.images is None and batch.features is None


def test_prompts_are_padded_on_the_left() -> None:
    batch = LanguageCollator((3, 2, 2), pad_id=9, dummy=DUMMY, left=True)([sample("1", "ab", "c")])
    assert batch.input_ids[1].tolist() == [9, SLOT, SLOT, 99, 1]
    assert batch.attention_mask[1].tolist() == [0, 1, 1, 1, 1]
    assert batch.labels[1].tolist() == [IGNORE, IGNORE, IGNORE, 99, 1]


def test_cut_texts_are_counted() -> None:
    assert LanguageCollator((3, 2, 2), pad_id=9, dummy=DUMMY)([sample("1", "abcd", "a")]).cut == 1


def test_an_empty_list_gives_a_dummy_of_weight_zero() -> None:
    batch = LanguageCollator((4,), pad_id=9, dummy=DUMMY)([])
    assert batch.weights.sum() == 0 and batch.keys == ()
    assert batch.features.shape == (1, 4) and torch.isfinite(batch.features).all()
    assert (batch.labels != IGNORE).any()  # its forward pass is like any other


def test_pairs_know_their_record_and_their_text() -> None:
    collate = ContrastiveCollator(lambda texts: torch.ones(len(texts), 4), (3, 2, 2))
    batch = collate([sample("1", "A dog", "a cat"), sample("2", " a  DOG")])
    assert batch.image_rows.tolist() == [0, 0, 1]
    assert batch.identity[:, 0].tolist() == [1, 1, 2]
    assert batch.identity[0, 1] == batch.identity[2, 1] != batch.identity[1, 1]
    assert collate([]).identity.tolist() == [[-1, -1]]
    assert 0 <= text_id("x") < 2**63


def test_texts_that_the_clip_tokenizer_cuts_are_counted() -> None:
    collate = ContrastiveCollator(open_clip.get_tokenizer("ViT-B-32"), (3, 2, 2))
    fits = "dog " * 75  # with start and end 77 tokens, as many as there is room for
    for texts, cut in (([fits], 0), ([fits + "dog"], 1), (["a", "dog " * 74, "cat " * 300], 1)):
        assert collate([sample("1", *texts)]).cut == cut
    assert collate([]).cut == 0


def test_only_images_and_features_change_their_dtype() -> None:
    batch = LanguageCollator((4,), pad_id=9, dummy=DUMMY)([])
    moved = to_device(batch, torch.device("cpu"), torch.bfloat16)
    assert moved.features.dtype == torch.bfloat16
    assert (moved.weights.dtype, moved.input_ids.dtype) == (torch.float32, torch.long)
