"""Image towers made through open_clip, tiny and without downloads; the user's mistakes."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from pipeline.config import EncoderConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.encoder import ImageEncoder, depth_groups, load_clip, load_image_encoder
from pipeline.models.encoder_sketch import check_encoder

TEXT = {"context_length": 8, "vocab_size": 20, "width": 8, "heads": 2, "layers": 1}


def clip(**vision: Any) -> open_clip.CLIP:
    torch.manual_seed(0)
    return open_clip.CLIP(embed_dim=6, vision_cfg=vision, text_cfg=TEXT)


def vit() -> open_clip.CLIP:
    return clip(image_size=16, patch_size=8, width=16, layers=3, head_width=8)


def resnet() -> open_clip.CLIP:
    return clip(image_size=32, layers=[1, 1, 1, 1], width=8, head_width=8)


class TimmTower(nn.Module):
    """What open_clip's TimmModel holds, around the smallest models of each kind."""

    def __init__(self, name: str, **sizes: Any) -> None:
        super().__init__()
        self.trunk = timm.create_model(name, pretrained=False, num_classes=0, **sizes)
        self.head = nn.Sequential(nn.Linear(self.trunk.num_features, 6))


def towers() -> dict[str, nn.Module]:
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 3, "num_heads": 2}
    return {
        "vit": vit().visual,
        "resnet": resnet().visual,
        "timm vit": TimmTower("vit_tiny_patch16_224", **small),
        "timm convnext": TimmTower("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 4, 4, 4)),
    }


@pytest.mark.parametrize(
    ("kind", "blocks"), [("vit", 3), ("resnet", 4), ("timm vit", 3), ("timm convnext", 4)]
)
def test_depth_groups_hold_every_parameter_once_in_order(kind: str, blocks: int) -> None:
    tower = towers()[kind]
    groups = depth_groups(tower)
    names = [name for group in groups for name in group]
    assert sorted(names) == sorted(name for name, _ in tower.named_parameters())
    assert len(groups) == blocks + 2 and all(groups)
    ends = {
        "vit": ({"class_embedding", "conv1.weight"}, {"proj", "ln_post.weight"}),
        "resnet": ({"conv1.weight", "bn3.bias"}, {"attnpool.c_proj.weight"}),
        "timm vit": ({"trunk.cls_token", "trunk.pos_embed"}, {"trunk.norm.weight", "head.0.bias"}),
        "timm convnext": ({"trunk.stem.0.weight"}, {"trunk.head.norm.bias", "head.0.bias"}),
    }
    assert ends[kind][0] <= set(groups[0]) and ends[kind][1] <= set(groups[-1])


def test_a_tower_without_known_blocks_says_what_to_use() -> None:
    with pytest.raises(ConfigError, match=r"encoder_adapt\.train: .* Linear .* train: all"):
        depth_groups(nn.Linear(2, 2))


@pytest.mark.parametrize("make", [vit, resnet])
@pytest.mark.parametrize("normalize", [True, False])
def test_features_are_those_of_encode_image(make: Any, normalize: bool) -> None:
    model = make().eval()
    encoder = ImageEncoder(model.visual, 6, normalize).eval()
    images = torch.randn(2, 3, *(2 * [16 if make is vit else 32]))
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), model.encode_image(images, normalize=normalize))
        half = encoder.bfloat16()(images)
    assert half.dtype == torch.bfloat16 and half.shape == (2, 6)


def test_batch_normalisation_keeps_its_statistics_in_training() -> None:
    encoder = ImageEncoder(resnet().visual, 6).train()
    assert encoder.visual.training
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and not any(module.training for module in norms)
    before = encoder.visual.bn1.running_mean.clone()
    images = torch.randn(4, 3, 32, 32)
    together = encoder(images)
    assert torch.equal(encoder.visual.bn1.running_mean, before)
    torch.testing.assert_close(torch.cat([encoder(images[:1]), encoder(images[1:])]), together)


@pytest.fixture
def tiny_arch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small built-in architecture, so that random and local weights need no large model."""
    name = "ViT-B-32"
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    config = {"embed_dim": 6, "vision_cfg": vision, "text_cfg": {**TEXT, "vocab_size": 49408}}
    configs = {**{each: {} for each in open_clip.list_models()}, name: config}
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", configs)
    return name


def test_random_weights_agree_between_ranks(tiny_arch: str) -> None:
    cfg = EncoderConfig(arch=tiny_arch, pretrained=None, normalize=True)
    first = load_clip(cfg, seed=3)
    torch.rand(1)
    encoder, transform = load_image_encoder(cfg, seed=3)
    expected = first.model.visual.state_dict().values()
    assert all(map(torch.equal, encoder.visual.state_dict().values(), expected))
    assert (first.width, first.image_size, first.context_length) == (6, 16, 8)
    assert first.tokenize(["a dog", "a cat"]).shape == (2, 8)
    assert transform(Image.new("RGB", (40, 20))).shape == (3, 16, 16)
    features = encoder(transform(Image.new("RGB", (40, 20)))[None])
    torch.testing.assert_close(features, F.normalize(features, dim=-1))


def test_a_local_weight_file(tiny_arch: str, tmp_path: Path) -> None:
    source = load_clip(EncoderConfig(arch=tiny_arch, pretrained=None), seed=1).model
    file = tmp_path / "weights.pt"
    torch.save(source.state_dict(), file)
    cfg = EncoderConfig(arch=tiny_arch, pretrained=str(file))
    loaded = load_clip(cfg).model
    assert all(map(torch.equal, loaded.state_dict().values(), source.state_dict().values()))
    torch.save({**source.state_dict(), "visual.proj": torch.zeros(2, 2)}, file)
    with pytest.raises(CheckpointError, match="do not fit") as caught:
        load_clip(cfg)
    assert "\n" not in str(caught.value)
    torch.save({"visual.proj": Path}, file)
    with pytest.raises(CheckpointError, match="without running code"):
        load_clip(cfg)
    for junk in (b"", b"<!DOCTYPE html>", b"hello"):  # a page of the server in place of the file
        file.write_bytes(junk)
        with pytest.raises(CheckpointError, match="damaged"):
            load_clip(cfg)
    torch.save([torch.zeros(1)], file)
    with pytest.raises(CheckpointError, match="damaged"):
        load_clip(cfg)


def test_weights_trained_with_quickgelu_get_it(
    tiny_arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_encoder(EncoderConfig(arch=tiny_arch, pretrained="openai"))
    assert not check_encoder(EncoderConfig(arch=tiny_arch, pretrained="laion2b_s34b_b79k"))
    configs = {"ViT-B-32-quickgelu": {"quick_gelu": True}}
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", configs)
    plain = {"laion": {"url": "x"}}
    monkeypatch.setattr("open_clip.pretrained._PRETRAINED", {"ViT-B-32-quickgelu": plain})
    with pytest.raises(ConfigError, match=r"use ViT-B-32$"):
        check_encoder(EncoderConfig(arch="ViT-B-32-quickgelu", pretrained="laion"))


@pytest.mark.parametrize(
    ("arch", "pretrained", "match"),
    [
        ("ViT-B32", None, r"encoder\.arch: .* did you mean ViT-B-32"),
        ("ViT-B-32", "opena", r"encoder\.pretrained: opena .* did you mean openai"),
        ("local-dir:/no/such", None, "open_clip_config.json"),
    ],
)
def test_wrong_names_name_the_right_ones(arch: str, pretrained: str | None, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        load_clip(EncoderConfig(arch=arch, pretrained=pretrained))
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, tiny_arch: str) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise FileNotFoundError("no network")

    monkeypatch.setattr("open_clip.factory.download_pretrained", refuse)
    with pytest.raises(ConfigError, match=r"set encoder\.pretrained to a local file"):
        load_image_encoder(EncoderConfig(arch=tiny_arch, pretrained="openai"))
