"""The shared module: slots, selected logits, gradients, and decoding against plain searches."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.encoder import ImageEncoder
from pipeline.models.multimodal import IGNORE, IMAGE_SLOT, MultimodalLM
from tests.models import tiny

EOS = tiny.VOCAB - 1


def rows_by_hand(model: MultimodalLM, batch: dict[str, Tensor]) -> list[Tensor]:
    """Each row's embeddings without its padding, one by one."""
    table = model.llm.get_input_embeddings()
    images = model.st(batch["features"])
    rows = []
    for ids, image, mask in zip(
        batch["input_ids"], batch["image_rows"], batch["attention_mask"], strict=True
    ):
        tokens = table(ids[(ids != IMAGE_SLOT) & (mask == 1)])
        rows.append(tokens if image < 0 else torch.cat([images[image], tokens]))
    return rows


@pytest.mark.parametrize("make", [tiny.gpt2, tiny.llama, tiny.gemma2])
def test_logits_are_those_of_each_row_alone_at_its_targets(make: type) -> None:
    model, batch = tiny.multimodal(make()), tiny.batch()
    out = model(**batch)
    expected, labels = [], []
    for embeds, targets in zip(rows_by_hand(model, batch), batch["labels"], strict=True):
        places = (targets != IGNORE).nonzero().squeeze(1)
        expected.append(model.llm(inputs_embeds=embeds[None]).logits[0, places - 1])
        labels.append(targets[places])
    torch.testing.assert_close(out.logits, torch.cat(expected), atol=2e-5, rtol=1e-4)
    assert torch.equal(out.labels, torch.cat(labels))
    assert out.weights.shape == out.labels.shape
    if make is tiny.gemma2:  # its soft cap was applied, although only some logits were computed
        assert out.logits.abs().max() <= 0.5


def test_means_and_row_weights() -> None:
    model, batch = tiny.multimodal(tiny.gpt2()), tiny.batch()
    batch["weights"][1] = 0.0
    out = model(**batch)
    images = model.st(batch["features"]).mean(1)
    expected = torch.stack([images[1], images[0], torch.zeros(tiny.WIDTH)])
    torch.testing.assert_close(out.prefix_mean, expected)
    table = model.llm.get_input_embeddings()
    torch.testing.assert_close(out.text_mean[0], table(torch.tensor([4, 9, EOS])).mean(0))
    torch.testing.assert_close(out.text_mean[2], table(torch.tensor([2, EOS])).mean(0))
    assert not out.text_mean.requires_grad
    assert out.row_weights.tolist() == [1.0, 0.0, 0.0]


def test_gradients_reach_the_st_through_a_frozen_llm_and_eos_is_learnt() -> None:
    model, batch = tiny.multimodal(tiny.gpt2().requires_grad_(False)), tiny.batch()
    out = model(**batch)
    assert (out.labels == EOS).sum() == 3
    F.cross_entropy(out.logits, out.labels).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.st.parameters())
    assert all(p.grad is None for p in model.llm.parameters())


def test_an_unused_image_runs_and_changes_nothing() -> None:
    model, batch = tiny.multimodal(tiny.gpt2()), tiny.batch()
    text = {name: value[2:] for name, value in batch.items() if name != "features"}
    alone = model(**text)
    beside = model(**text, features=batch["features"][:1])
    assert torch.equal(alone.logits, beside.logits)
    (beside.logits.sum() + beside.prefix_mean.sum()).backward()
    gradients = [parameter.grad for parameter in model.st.parameters()]
    assert all(each is not None and not each.any() for each in gradients)


def test_a_batch_without_targets_still_has_a_graph() -> None:
    model, batch = tiny.multimodal(tiny.gpt2()), tiny.batch()
    batch["labels"] = torch.full_like(batch["labels"], IGNORE)
    out = model(**batch)
    assert out.logits.shape == (0, tiny.VOCAB)
    out.logits.sum().backward()


def test_slots_that_do_not_fit_the_image_are_refused() -> None:
    model, batch = tiny.multimodal(tiny.gpt2()), tiny.batch()
    batch["image_rows"][2] = 0
    with pytest.raises(ValueError, match="3 slots"):
        model(**batch)


class Tower(nn.Module):
    """Linear over the mean colour, with dropout that would show if the tower were in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(3, tiny.FEATURE)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.drop(self.proj(images.mean((2, 3))))
        return out


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_gets_no_gradient_and_runs_in_eval_mode(frozen: bool) -> None:
    encoder = ImageEncoder(Tower(), tiny.FEATURE)
    encoder.requires_grad_(not frozen)
    plain = tiny.multimodal(tiny.gpt2())
    model = MultimodalLM(encoder, plain.st, plain.llm).train()
    images = torch.randn(2, 3, 4, 4)
    first, second = model.image_embeddings(images), model.image_embeddings(images)
    assert torch.equal(first, second) == frozen
    first.sum().backward()
    assert all((parameter.grad is None) == frozen for parameter in encoder.parameters())
    features = encoder.eval()(images)
    expected = model.image_embeddings(features=features)
    if frozen:
        assert torch.equal(first, expected)


def prompts() -> dict[str, Tensor]:
    """An image alone, padded on the left, and an image with two tokens before it."""
    slots = [IMAGE_SLOT] * tiny.PREFIX
    torch.manual_seed(3)
    return {
        "features": torch.randn(2, tiny.FEATURE),
        "image_rows": torch.tensor([1, 0]),
        "input_ids": torch.tensor([[0, 0, *slots], [5, 6, *slots]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
    }


def ids(pad: int = 0) -> dict[str, int]:
    return {"eos_token_id": EOS, "pad_token_id": pad}


def log_probs(model: MultimodalLM, prompt: Tensor, tokens: list[int]) -> Tensor:
    """Next-token log-probabilities after (P, D) and some tokens, without a cache."""
    table = model.llm.get_input_embeddings()
    embeds = torch.cat([prompt, table(torch.tensor(tokens, dtype=torch.long))])
    out: Tensor = model.llm(inputs_embeds=embeds[None]).logits[0, -1].log_softmax(-1)
    return out


def prompt_embeddings(model: MultimodalLM, batch: dict[str, Tensor]) -> list[Tensor]:
    images = model.st(batch["features"])
    table = model.llm.get_input_embeddings()
    return [images[1], torch.cat([table(torch.tensor([5, 6])), images[0]])]


@torch.no_grad()
@pytest.mark.parametrize("make", [tiny.gpt2, tiny.llama])
def test_greedy_with_the_cache_is_argmax_without_one(make: type) -> None:
    model, batch = tiny.multimodal(make()), prompts()
    out = model.generate(**batch, max_new_tokens=6, **ids())
    for got, prompt in zip(out, prompt_embeddings(model, batch), strict=True):
        tokens: list[int] = []
        while len(tokens) < out.shape[1] and EOS not in tokens:
            tokens.append(int(log_probs(model, prompt, tokens).argmax()))
        assert got.tolist() == tokens + [0] * (out.shape[1] - len(tokens))


@torch.no_grad()
@pytest.mark.parametrize("length_penalty", [1.0, 0.0])
def test_a_wide_beam_finds_what_exhaustive_search_finds(length_penalty: float) -> None:
    vocab, steps = 6, 3
    model = tiny.multimodal(tiny.gpt2(vocab_size=vocab, bos_token_id=5, eos_token_id=5))
    batch = prompts()
    batch["input_ids"] = batch["input_ids"].clamp(max=4)
    out = model.generate(
        **batch,
        max_new_tokens=steps,
        num_beams=vocab**2,
        length_penalty=length_penalty,
        early_stopping="never",
        eos_token_id=5,
        pad_token_id=0,
    )
    table = model.llm.get_input_embeddings()
    images = model.st(batch["features"])
    prefixes = [images[1], torch.cat([table(torch.tensor([4, 4])), images[0]])]
    for got, prompt in zip(out, prefixes, strict=True):
        best = max(
            (score(model, prompt, tokens, length_penalty), tokens)
            for tokens in sequences(vocab, steps, eos=5)
        )[1]
        assert got.tolist() == best + [0] * (out.shape[1] - len(best))


def sequences(vocab: int, steps: int, eos: int) -> list[list[int]]:
    """All that end in their first EOS, or are `steps` long without one."""
    others = [token for token in range(vocab) if token != eos]
    ended = [[*body, eos] for n in range(steps) for body in itertools.product(others, repeat=n)]
    return ended + [list(body) for body in itertools.product(others, repeat=steps)]


def score(model: MultimodalLM, prompt: Tensor, tokens: list[int], length_penalty: float) -> float:
    table = model.llm.get_input_embeddings()
    embeds = torch.cat([prompt, table(torch.tensor(tokens))])
    logits = model.llm(inputs_embeds=embeds[None]).logits[0, len(prompt) - 1 : -1]
    total = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).sum()
    return float(total / len(tokens) ** length_penalty)


def test_generation_ignores_and_keeps_every_training_mode() -> None:
    model, batch = tiny.multimodal(tiny.gpt2(resid_pdrop=0.9)), prompts()
    expected = model.eval().generate(**batch, max_new_tokens=4, **ids())
    model.train()
    model.llm.eval()
    modes = [module.training for module in model.modules()]
    assert torch.equal(model.generate(**batch, max_new_tokens=4, **ids()), expected)
    assert [module.training for module in model.modules()] == modes


def test_a_frozen_part_stays_in_eval_mode_whatever_the_model_is_in() -> None:
    model = tiny.multimodal(tiny.gpt2(resid_pdrop=0.5))
    model.llm.requires_grad_(False)
    model.train()
    assert model.st.training and not any(each.training for each in model.llm.modules())
    model.llm.requires_grad_(True)
    model.train()
    assert all(each.training for each in model.llm.modules())
