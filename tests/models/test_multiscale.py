"""Several scales of an image: which tiles a tower sees, and what becomes of their features."""

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.config import EncoderConfig
from pipeline.errors import ConfigError
from pipeline.models.encoder import ImageEncoder, load_image_encoder
from pipeline.models.multiscale import views


def test_tiles_are_the_image_cut_row_by_row() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4).expand(2, 3, 4, 4)
    (tiles,) = views(image, [2])
    assert tiles.shape == (2, 4, 3, 2, 2)
    expected = [[[0, 1], [4, 5]], [[2, 3], [6, 7]], [[8, 9], [12, 13]], [[10, 11], [14, 15]]]
    assert tiles[1, :, 2].tolist() == expected


def test_smaller_scales_are_the_image_shrunk() -> None:
    images = torch.rand(2, 3, 24, 24)
    whole, quarters, ninths = views(images, [1, 2, 3])
    assert [each.shape[1] for each in (whole, quarters, ninths)] == [1, 4, 9]
    assert all(each.shape[2:] == (3, 8, 8) for each in (whole, quarters, ninths))
    torch.testing.assert_close(whole.mean((1, 3, 4)), images.mean((2, 3)), atol=0.02, rtol=0)
    assert torch.equal(ninths[:, 4], images[:, :, 8:16, 8:16])


class Tower(nn.Module):
    """Sees tiles of 4 x 4 only, and gives their mean colour and its square."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[1:] == (3, 4, 4)
        mean = images.mean((2, 3)) * self.gain
        return torch.cat([mean, mean.square()], -1)


@pytest.mark.parametrize("normalize", [False, True])
def test_features_of_the_scales_follow_one_another_and_tiles_are_averaged(normalize: bool) -> None:
    encoder = ImageEncoder(Tower(), 6, normalize, scales=[2, 1])
    images = torch.rand(3, 3, 8, 8)
    features = encoder(images)
    assert features.shape == (3, encoder.width) == (3, 12)
    quarters, whole = views(images, [2, 1])
    single = ImageEncoder(Tower(), 6, normalize)
    expected = torch.stack([single(quarters[:, i]) for i in range(4)]).mean(0)
    torch.testing.assert_close(features[:, :6], expected)
    torch.testing.assert_close(features[:, 6:], single(whole[:, 0]))


def test_a_real_tower_gets_images_of_the_largest_scale() -> None:
    one, plain = load_image_encoder(EncoderConfig(arch="ViT-S-32", pretrained=None))
    two, large = load_image_encoder(EncoderConfig(arch="ViT-S-32", pretrained=None, scales=[1, 2]))
    assert two.width == 2 * one.width and one.state_dict().keys() == two.state_dict().keys()
    noise = numpy.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype="uint8")
    photo = Image.fromarray(noise).resize((600, 500), Image.Resampling.BICUBIC)
    assert plain(photo).shape == (3, 224, 224) and large(photo).shape == (3, 448, 448)
    with torch.no_grad():
        single, double = one(plain(photo)[None]), two(large(photo)[None])
    # The same image, shrunk once or twice.
    assert torch.cosine_similarity(double[:, : one.width], single) > 0.999


def test_half_precision_is_shrunk_too() -> None:
    images = torch.rand(1, 3, 8, 8).bfloat16()
    whole, _ = views(images, [1, 2])
    assert whole.dtype == torch.bfloat16


@pytest.mark.parametrize("scales", [[], [0], [1, 1]])
def test_scales_that_are_none_are_refused(scales: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.scales: .*use \[1\]"):
        load_image_encoder(EncoderConfig(arch="ViT-S-32", pretrained=None, scales=scales))
