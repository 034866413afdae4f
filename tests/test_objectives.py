"""The task modules that DeepSpeed wraps: what they export, and what stays in eval mode."""

import open_clip
import torch
from torch import nn

from pipeline.data.collate import ContrastiveBatch, LanguageCollator, Sample
from pipeline.data.prompts import IGNORE, Row
from pipeline.dist import World
from pipeline.objectives import ContrastiveTask, LanguageTask
from pipeline.validation import language_metrics, retrieval_features
from tests.models import tiny

WORLD = World(0, 1, 0, 1, torch.device("cpu"))
TEXT = {"context_length": 6, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}


def resnet_clip() -> nn.Module:
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
    model: nn.Module = open_clip.model.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=TEXT)
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


def language_batch(*texts: str):
    def layout(text: str) -> Row:
        ids = [ord(letter) % tiny.VOCAB for letter in text]
        slots = [-1] * tiny.PREFIX
        return Row(slots + ids, [IGNORE] * tiny.PREFIX + ids)

    collate = LanguageCollator(layout, (tiny.FEATURE,), pad_id=0)
    return collate([Sample(t, i, (t,), torch.randn(tiny.FEATURE)) for i, t in enumerate(texts)])


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
