"""LaVIN: the reference's numbers, the fast way against the plain one, decoding, folding."""

from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from pipeline.config import MMAdapterConfig
from pipeline.models.lavin import parts
from pipeline.models.lavin_model import LanguageAdapters, Lavin
from pipeline.models.multimodal import IMAGE_SLOT
from pipeline.models.official_lavin import rename
from pipeline.models.st import VisualProjection
from pipeline.models.tower import AdaptedTower, chosen_layers, make_tower_adapters
from tests.models import lavin_golden, tiny
from tests.models.test_tower import tower

EVERY = pytest.mark.parametrize("name", sorted(tiny.DECODERS))
SLOTS = 3  # features of an image


def every_logit(model: Lavin, row: dict[str, Tensor]) -> Tensor:
    """The logits of every place but the last of each row, (R * (T - 1), V)."""
    ids = row["input_ids"]
    labels = {"labels": torch.zeros_like(ids), "weights": torch.ones(ids.shape)}
    logits: Tensor = model(**{**row, **labels}).logits
    return logits


@pytest.mark.parametrize("name", ["lavin_image", "lavin_text"])
def test_outputs_and_gradients_equal_the_reference(name: str) -> None:
    model = lavin_golden.model()
    tensors, _ = lavin_golden.read(name)
    row = lavin_golden.row(tensors)
    if "images" in row:
        embeds = model.image_embeddings(row["images"])
        torch.testing.assert_close(embeds, tensors["output.image_embeds"], atol=1e-5, rtol=0)
    logits = every_logit(model, row)
    expected = tensors["output.logits"][0, 1:-1]  # the modality token stands first
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    loss = F.cross_entropy(logits, row["labels"][0, 1:], ignore_index=0)
    torch.testing.assert_close(loss[None], tensors["output.loss"], atol=1e-5, rtol=0)
    loss.backward()
    gradients, unknown = rename(lavin_golden.behind("grad.", tensors))
    assert not unknown
    assert len(gradients) == {"lavin_image": 5 + 11 * 8, "lavin_text": 1 + 3 * 8}[name]
    parameters = dict(model.named_parameters())
    for ours, value in gradients.items():
        got = parameters[ours].grad
        assert got is not None, ours
        assert (got - value).norm() <= 1e-4 * value.norm(), ours


def lavin(llm: PreTrainedModel, **adapter: Any) -> Lavin:
    """A model that takes features, with adapters that do something."""
    torch.manual_seed(1)
    cfg = MMAdapterConfig(hidden=4, temperature=0.5, **adapter)
    adapters = LanguageAdapters(llm.config.num_hidden_layers, tiny.WIDTH, cfg)
    for parameter in adapters.parameters():
        nn.init.normal_(parameter, std=0.5)
    return Lavin(None, VisualProjection(tiny.FEATURE, 5, tiny.WIDTH), llm, adapters).eval()


def rows() -> dict[str, Tensor]:
    """Two rows with an image (the second image, then the first) and one of text, padded right."""
    slots = [IMAGE_SLOT] * SLOTS
    ids = [[1, 5, *slots, 4, 9, 36], [1, 5, *slots, 7, 36, 0], [1, 6, 8, 2, 36, 0, 0, 0]]
    torch.manual_seed(2)
    return {
        "features": torch.randn(2, SLOTS, tiny.FEATURE),
        "image_rows": torch.tensor([1, 0, -1]),
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor([[1] * 8, [1] * 7 + [0], [1] * 5 + [0] * 3]),
    }


def prompts() -> dict[str, Tensor]:
    """The same rows as prompts: padded on the left."""
    row = rows()
    for name in ("input_ids", "attention_mask"):
        lengths = [8, 7, 5]
        row[name] = torch.stack(
            [each.roll(8 - n) for each, n in zip(row[name], lengths, strict=True)]
        )
    return row


def plainly(model: Lavin, row: dict[str, Tensor]) -> Tensor:
    """(R, T, V) as the reference computes them: the modality token in the sequence, a 4-D mask in
    which nobody else sees it, SDPA as it comes."""
    embeds = model.image_embeddings(features=row["features"])
    inputs = model.embed(row["input_ids"], embeds, row["image_rows"])
    first = model.adapters.modality((row["image_rows"] >= 0).long())[:, None]
    inputs = torch.cat([first, inputs], 1)
    length = inputs.shape[1]
    seen = torch.ones(length, length).tril().bool()[None, None].repeat(len(inputs), 1, 1, 1)
    seen[:, :, :, 1:] &= row["attention_mask"].bool()[:, None, None]
    seen[:, :, 1:, 0] = False
    diagonal = torch.eye(length).bool()
    mask = torch.zeros(seen.shape).masked_fill(~(seen | diagonal), float("-inf"))
    before = model.llm.config._attn_implementation
    model.llm.set_attn_implementation("sdpa")
    try:
        logits: Tensor = model.llm(inputs_embeds=inputs, attention_mask=mask).logits
    finally:
        model.llm.set_attn_implementation(before)
    return logits[:, 1:]


@EVERY
@pytest.mark.parametrize("padded", ["right", "left"])
def test_the_fast_way_equals_the_token_and_its_mask(name: str, padded: str) -> None:
    model, row = lavin(tiny.DECODERS[name]()), rows() if padded == "right" else prompts()
    fast = every_logit(model, row).view(3, 7, -1)
    plain = plainly(model, row)[:, :-1]
    real = row["attention_mask"][:, :-1].bool()
    torch.testing.assert_close(fast[real], plain[real], atol=1e-5, rtol=1e-5)
    ours, theirs = (
        torch.autograd.grad((each[real] ** 2).sum(), list(model.adapters.parameters()))
        for each in (fast, plain)
    )
    for got, expected in zip(ours, theirs, strict=True):
        assert (got - expected).norm() <= 1e-4 * expected.norm()


@EVERY
def test_a_row_depends_on_its_own_modality_and_on_no_other_row(name: str) -> None:
    model, row = lavin(tiny.DECODERS[name]()), rows()
    together = every_logit(model, row).view(3, 7, -1)
    text = {key: value[2:, :5] for key, value in row.items() if key.startswith(("input", "att"))}
    alone = every_logit(model, {**text, "image_rows": row["image_rows"][2:]})
    torch.testing.assert_close(together[2, :4], alone, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        model.adapters.modality.weight[1] = model.adapters.modality.weight[0].roll(1)
    changed = every_logit(model, row).view(3, 7, -1)
    torch.testing.assert_close(changed[2, :4], alone, atol=1e-5, rtol=1e-5)
    assert (changed[:2] - together[:2]).abs().max() > 1e-3


def answers(model: Lavin, prompt: dict[str, Tensor], **options: Any) -> Tensor:
    ids = {"eos_token_id": tiny.VOCAB, "pad_token_id": 0}  # no such token: all run to the end
    return model.generate(**prompt, max_new_tokens=5, **ids, **options)


@EVERY
def test_step_by_step_logits_equal_teacher_forced_ones(name: str) -> None:
    # The reference decodes at other positions than it trains at.
    model, prompt = lavin(tiny.DECODERS[name]()), prompts()
    steps: list[Tensor] = []
    head = model.llm.get_output_embeddings()
    hook = head.register_forward_hook(lambda _m, _a, out: steps.append(out[:, -1].detach()))
    new = answers(model, prompt)
    hook.remove()
    assert new.shape == (3, 5)
    stepped = torch.stack(steps[-5:], 1)  # (3, 5, V); before them the pass for the routing
    for i, answer in enumerate(new):
        given = prompt["input_ids"][i][prompt["attention_mask"][i] == 1]
        ids = torch.cat([given, answer])[None]
        row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        row |= {"image_rows": prompt["image_rows"][i : i + 1], "features": prompt["features"]}
        forced = every_logit(model, row)[len(given) - 1 :]
        torch.testing.assert_close(stepped[i], forced, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_beams_of_a_mixed_batch_are_those_of_each_row_alone(name: str) -> None:
    model, prompt = lavin(tiny.DECODERS[name]()), prompts()
    together = answers(model, prompt, num_beams=3)
    for i in range(3):
        one = {key: value[i : i + 1] for key, value in prompt.items() if key != "features"}
        alone = answers(model, {**one, "features": prompt["features"]}, num_beams=3)
        assert torch.equal(together[i], alone[0])


@EVERY
@pytest.mark.parametrize("has_image", [True, False])
def test_folded_adapters_give_the_same_logits_and_the_same_answers(
    name: str, has_image: bool
) -> None:
    model, row, prompt = lavin(tiny.DECODERS[name](), dropout=0.5), rows(), prompts()
    kept = (row["image_rows"] >= 0) == has_image
    row, prompt = (
        {key: each if key == "features" else each[kept] for key, each in batch.items()}
        for batch in (row, prompt)
    )
    real = row["attention_mask"][:, :-1].flatten().bool()
    logits, tokens = every_logit(model, row)[real], answers(model, prompt)
    model.fold(has_image)
    torch.testing.assert_close(every_logit(model, row)[real], logits, atol=2e-5, rtol=2e-5)
    assert torch.equal(answers(model, prompt), tokens)
    with pytest.raises(ValueError, match="folded for rows"):
        answers(model, prompts())


def test_checkpointed_activations_give_equal_gradients() -> None:
    gradients = []
    for saving in (False, True):
        model = lavin(tiny.qwen2(), dropout=0.3).requires_grad_(False)
        model.adapters.requires_grad_(True)
        if saving:
            model.llm.gradient_checkpointing_enable()
        torch.manual_seed(3)
        every_logit(model.train(), rows()).square().sum().backward()
        gradients.append([each.grad for each in model.adapters.parameters()])
    for plain, saved in zip(*gradients, strict=True):
        assert plain is not None and saved is not None
        torch.testing.assert_close(saved, plain)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "inner", "published"),
    [(4096, 32, 32, 11008, 3_781_296), (5120, 40, 40, 13824, 5_390_080)],
)
def test_trained_parameters_are_as_many_as_published(
    width: int, depth: int, heads: int, inner: int, published: int
) -> None:
    with torch.device("meta"):
        llm = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=width,
                num_hidden_layers=depth,
                num_attention_heads=heads,
                intermediate_size=inner,
            )
        )
        visual = open_clip.create_model("ViT-L-14", pretrained=None, device="meta").visual
        layers = chosen_layers((), 24)
        image = AdaptedTower(visual, layers, make_tower_adapters(visual, MMAdapterConfig()), "cls")
        adapters = LanguageAdapters(depth, width, MMAdapterConfig())
        model = Lavin(image, VisualProjection(image.width, 128, width), llm, adapters)
    found = parts(model)
    own = [found[name] for name in ("encoder_adapters", "st", "adapters")]
    assert sum(each.numel() for part in own for each in part.parameters()) == published
    every = [id(each) for part in found.values() for each in part.parameters()]
    assert len(every) == len(set(every)) == len(list(model.parameters()))


def test_only_what_trains_drops_out() -> None:
    plain = lavin(tiny.llama(attention_dropout=0.5))
    image = tower()
    model = Lavin(image, plain.st, plain.llm, plain.adapters).requires_grad_(False)
    model.adapters.requires_grad_(True)
    model.train()
    assert model.adapters.layers[0].training
    for frozen in (image.visual, image.adapters, model.llm, model.st):
        assert not any(each.training for each in frozen.modules())
