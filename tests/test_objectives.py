"""The task modules that DeepSpeed wraps: what they export, and what stays in eval mode."""

import math
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from pipeline.data.collate import ContrastiveBatch, LanguageCollator, Sample
from pipeline.data.prompts import IGNORE, Row
from pipeline.dist import World
from pipeline.objectives import ContrastiveObjective, ContrastiveTask, LanguageTask
from pipeline.validation import language_metrics, retrieval_features
from tests.models import tiny

WORLD = World(0, 1, 0, 1, torch.device("cpu"))
TEXT = {"context_length": 6, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}


def resnet_clip(**options: object) -> nn.Module:
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
    model: nn.Module = open_clip.model.CLIP(8, vision_cfg=vision, text_cfg=TEXT, **options)
    return model


def test_the_scalar_temperature_trains_as_a_vector_and_is_exported_as_it_was() -> None:
    clip = resnet_clip()
    before = clip.logit_scale.detach().clone()
    task = ContrastiveTask(clip)
    trained = dict(task.named_parameters())
    assert all(each.dim() > 0 for each in trained.values())
    exported = task.exported(trained)
    assert exported["text.logit_scale"].shape == before.shape == ()
    assert torch.equal(exported["text.logit_scale"], before)
    assert {name.partition(".")[0] for name in exported} == {"encoder", "text"}
    assert "encoder.visual.attnpool.q_proj.weight" in exported


def test_batch_normalisation_keeps_its_statistics_in_training() -> None:
    task = ContrastiveTask(resnet_clip()).train()
    norms = [each for each in task.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    assert norms and not any(each.training for each in norms)
    before = [each.running_mean.clone() for each in norms]
    batch = ContrastiveBatch(
        torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), torch.ones(2, 6).long(), torch.zeros(2, 2)
    )
    task(batch)
    assert all(torch.equal(a, b.running_mean) for a, b in zip(before, norms, strict=True))


def pairs(count: int) -> ContrastiveBatch:
    torch.manual_seed(count)
    rows = torch.arange(count)
    images = torch.randn(count, 3, 32, 32)
    text = torch.randint(0, 20, (count, 6))
    return ContrastiveBatch(images, rows, text, torch.stack([rows, rows], 1))


def test_siglip_starts_where_the_paper_does_and_hands_its_bias_to_nobody() -> None:
    task = ContrastiveTask(resnet_clip(), loss="siglip").eval()
    image, text, constants = task(pairs(3))
    torch.testing.assert_close(constants, torch.tensor([10.0, -10.0]))
    exported = task.exported(dict(task.named_parameters()))
    assert "text.logit_scale" in exported and "text.logit_bias" not in exported
    same = exported["text.logit_scale"].shape == resnet_clip().logit_scale.shape
    assert same and len(image) == len(text) == 3


def test_siglip_keeps_the_constants_of_a_model_that_has_both() -> None:
    clip = resnet_clip(init_logit_scale=4.7, init_logit_bias=-12.0)
    task = ContrastiveTask(clip, loss="siglip").eval()
    constants = task(pairs(2))[2]
    torch.testing.assert_close(constants, torch.tensor([math.exp(4.7), -12.0]))
    exported = task.exported(dict(task.named_parameters()))
    assert exported["text.logit_bias"].shape == ()
    assert ContrastiveTask(clip).eval()(pairs(2))[2].tolist() == [100.0]  # InfoNCE's upper bound


def test_a_locked_tower_stays_in_eval_mode() -> None:
    clip = resnet_clip()
    for name, each in clip.named_parameters():
        each.requires_grad_(name.startswith("visual.") or name == "logit_scale")
    ContrastiveTask(clip).train()
    assert not any(each.training for each in clip.transformer.modules())
    assert clip.visual.training


class PlainEngine:
    """The engine of one process without DeepSpeed: gradients go where autograd leaves them."""

    def __init__(self, task: ContrastiveTask) -> None:
        self.task = task

    def __call__(self, batch: ContrastiveBatch) -> tuple[torch.Tensor, ...]:
        return self.task(batch)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
@pytest.mark.parametrize("sizes", [(6,), (2, 2, 2), (5, 1)])
def test_cut_into_micro_batches_the_gradient_is_that_of_the_whole(
    loss: str, sizes: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    task = ContrastiveTask(resnet_clip(), loss=loss).train()
    batch = pairs(6)
    image, text, constants = task(batch)
    summed = task.pair_loss(image, text, constants, batch.identity, rows=slice(0, 6))
    expected = torch.autograd.grad(summed / 6, list(task.parameters()))
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    cut = [
        ContrastiveBatch(
            batch.images[b - n : b],
            torch.arange(n),
            batch.text[b - n : b],
            batch.identity[b - n : b],
        )
        for b, n in zip(ends, sizes, strict=True)
    ]
    engine: Any = PlainEngine(task)
    result = ContrastiveObjective(engine, WORLD, torch.float32, task.pair_loss).step(cut)
    torch.testing.assert_close(result.share, (summed / 6).detach())
    # Of each tensor's largest value: float32 sums in another order.
    for (name, each), gradient in zip(task.named_parameters(), expected, strict=True):
        assert each.grad is not None, name
        apart = (each.grad - gradient).abs().max()
        assert apart <= 1e-4 * gradient.abs().max() + 1e-7, (name, apart, gradient.abs().max())


def language_batch(*texts: str):
    def layout(text: str) -> Row:
        ids = [ord(letter) % tiny.VOCAB for letter in text]
        slots = [-1] * tiny.PREFIX
        return Row(slots + ids, [IGNORE] * tiny.PREFIX + ids)

    collate = LanguageCollator((tiny.FEATURE,), pad_id=0, dummy=layout("a"))
    samples = [
        Sample(t, i, (t,), torch.randn(tiny.FEATURE), (layout(t),)) for i, t in enumerate(texts)
    ]
    return collate(samples)


def test_smoothing_is_for_training_only() -> None:
    torch.manual_seed(0)
    task = LanguageTask(tiny.multimodal(tiny.gpt2()), label_smoothing=0.3)
    batch = language_batch("abc", "de")
    plain = LanguageTask(task.model)
    assert torch.equal(task.eval()(batch)[0], plain.eval()(batch)[0])
    assert not torch.equal(task.train()(batch)[0], plain(batch)[0])


def test_validation_does_not_depend_on_the_batches() -> None:
    torch.manual_seed(0)
    task = LanguageTask(tiny.multimodal(tiny.gpt2())).eval()
    first, second = language_batch("abcde", "f"), language_batch("gh")
    both = language_metrics(task, [first, second], WORLD, torch.float32)
    parts = [
        language_metrics(task, [each], WORLD, torch.float32)["loss"] for each in (first, second)
    ]
    assert abs(both["loss"] - (6 * parts[0] + 2 * parts[1]) / 8) < 1e-5
    assert abs(both["perplexity"] - torch.tensor(both["loss"]).exp()) < 1e-3


def test_retrieval_features_give_each_image_once_and_drop_dummies() -> None:
    def forward(batch: ContrastiveBatch):
        return batch.images[batch.image_rows], batch.text, torch.ones(1)

    dummy = -torch.ones(1, 2)
    batches = [
        ContrastiveBatch(
            torch.tensor([[3.0], [1.0]]),
            torch.tensor([0, 0, 1]),
            torch.tensor([[30.0], [31.0], [10.0]]),
            torch.tensor([[3, 0], [3, 1], [1, 2]]),
        ),
        ContrastiveBatch(torch.zeros(1, 1), torch.zeros(1).long(), torch.zeros(1, 1), dummy),
    ]
    image, text, text_image, records = retrieval_features(forward, batches, WORLD, torch.float32)
    assert image.tolist() == [[1.0], [3.0]] and records.tolist() == [1, 3]
    assert text_image.tolist() == [1, 1, 0] and len(text) == 3
