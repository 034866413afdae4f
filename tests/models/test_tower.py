"""Image towers with adapters: each image on its own, chosen blocks, kinds of towers."""

from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from pipeline.config import MMAdapterConfig
from pipeline.errors import ConfigError
from pipeline.models.encoder import ImageEncoder
from pipeline.models.tower import AdaptedTower, chosen_layers, make_tower_adapters


def plain() -> ImageEncoder:
    torch.manual_seed(4)
    visual = open_clip.transformer.VisionTransformer(
        image_size=16, patch_size=8, width=8, layers=4, heads=2, mlp_ratio=2.0, output_dim=6
    )
    return ImageEncoder(visual, 6)


def tower(routing: str = "cls", **adapter: Any) -> AdaptedTower:
    visual = plain().visual
    adapters = make_tower_adapters(visual, MMAdapterConfig(hidden=4, temperature=0.5, **adapter))
    for parameter in adapters.parameters():
        nn.init.normal_(parameter, std=0.5)
    return AdaptedTower(visual, chosen_layers((2, 4), 4), adapters, routing).eval()


@pytest.mark.parametrize("routing", ["cls", "token"])
def test_an_image_does_not_depend_on_the_others_of_its_batch(routing: str) -> None:
    # The reference routes all images by the first.
    model, images = tower(routing), torch.randn(3, 3, 16, 16)
    alone = torch.cat([model(each[None]) for each in images])
    torch.testing.assert_close(model(images), alone, atol=1e-5, rtol=1e-5)
    assert alone.shape == (3, 2, 8)
    assert not torch.allclose(alone, tower("token" if routing == "cls" else "cls")(images))


def test_a_checkpointed_tower_gives_equal_gradients_and_keeps_nothing() -> None:
    images, gradients = torch.randn(2, 3, 16, 16), []
    for saving in (False, True):
        model = tower(dropout=0.0).train()
        model.visual.set_grad_checkpointing(saving)
        model(images).square().sum().backward()
        gradients.append([each.grad for each in model.adapters.parameters()])
        assert not any(block._forward_hooks for block in model.blocks.blocks)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_tower_without_a_class_token_gives_means_instead() -> None:
    visual = open_clip.create_model("ViT-B-16-SigLIP", pretrained=None, device="meta").visual
    adapters = make_tower_adapters(visual, MMAdapterConfig())
    model = AdaptedTower(visual, chosen_layers((), 12), adapters, "cls")
    model.to("meta")
    assert model(torch.randn(2, 3, 224, 224, device="meta")).shape == (2, 6, 768)
    assert not model.blocks.class_token
    tokens = torch.randn(2, 4, 3)
    torch.testing.assert_close(model.blocks.summary(tokens), tokens.mean(1, keepdim=True))


def test_chosen_layers_are_six_evenly_spaced_ones_by_default() -> None:
    assert chosen_layers((), 24) == (4, 8, 12, 16, 20, 24)
    assert chosen_layers((), 12) == (2, 4, 6, 8, 10, 12)
    assert chosen_layers((3, 1), 4) == (3, 1)
    with pytest.raises(ConfigError, match=r"6 by default: the tower has 4 blocks"):
        chosen_layers((), 4)
    with pytest.raises(ConfigError, match=r"image_layers: \[5\]: the tower has 4 blocks"):
        chosen_layers((5,), 4)


def test_a_tower_that_is_no_transformer_is_refused() -> None:
    with pytest.raises(ConfigError, match="a Sequential has no blocks"):
        make_tower_adapters(nn.Sequential(), MMAdapterConfig())
