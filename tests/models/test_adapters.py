"""The MM-adapter by its formula, and the LaVIN family's assembly and row layout."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from pipeline.config import Config, EncoderConfig, LLMConfig, MMAdapterConfig
from pipeline.errors import ConfigError
from pipeline.models import lavin
from pipeline.models.adapters import MMAdapter, fold_into
from pipeline.models.encoder import ImageEncoder, load_image_encoder
from pipeline.models.llm import load_llm_config
from pipeline.models.multimodal import IMAGE_SLOT
from pipeline.models.placement import Placement, fill, reset_parameters
from pipeline.models.scratch import train_tokenizer
from tests.models import tiny


def adapter(**changes: Any) -> MMAdapter:
    torch.manual_seed(0)
    made = MMAdapter(6, MMAdapterConfig(hidden=4, **changes))
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made.eval()


def test_the_update_is_the_formula_with_grouped_experts() -> None:
    made = adapter(scale=0.7, temperature=3.0)
    hidden = torch.randn(2, 5, 6)
    routing = made.router(hidden[:, :1])
    weights = (made.router.weight @ hidden[:, 0, :, None]).squeeze(-1) + made.router.bias
    weights = (weights / 3.0).softmax(-1)  # (2, 2)
    torch.testing.assert_close(routing[:, 0], weights)
    low = hidden @ made.down.weight.T + made.down.bias
    expected = hidden.clone()
    for i, expert in enumerate(made.up):
        # A grouped convolution of one point, as the reference writes it.
        mapped = nn.functional.conv1d(low.mT, expert.weight[..., None], expert.bias, groups=2).mT
        expected = expected + 0.7 * weights[:, i, None, None] * mapped
    torch.testing.assert_close(made(hidden, routing), expected)


def test_a_fresh_adapter_changes_nothing_and_is_the_same_on_every_rank() -> None:
    found = []
    for _ in range(2):
        made = MMAdapter(6, MMAdapterConfig())
        fill(made, lambda name: None, Placement(), seed=3, init=reset_parameters)
        found.append(made)
        torch.rand(1)
    hidden = torch.randn(1, 2, 6)
    assert torch.equal(found[0](hidden, found[0].router(hidden)), hidden)
    assert all(map(torch.equal, found[0].parameters(), found[1].parameters()))
    assert found[0].down.weight.std() > 0 and not found[0].down.bias.any()


def test_folding_into_a_linear_map_with_and_without_bias() -> None:
    made, hidden = adapter(), torch.randn(1, 3, 6)
    routing = torch.tensor([0.3, 0.7])
    for bias in (True, False):
        linear = nn.Linear(6, 5, bias=bias)
        expected = linear(made(hidden, routing[None, None]))
        fold_into(linear, *made.as_linear(routing))
        torch.testing.assert_close(linear(hidden), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="cannot be folded into a Bilinear"):
        fold_into(nn.Bilinear(6, 6, 5), *made.as_linear(routing))


def recipe(folder: Path, **changes: Any) -> Config:
    tiny.llama().save_pretrained(folder)
    cfg = Config(family="lavin", llm=LLMConfig(path=str(folder)))
    cfg.data.task, cfg.data.max_tokens = "scienceqa", 20
    cfg.lavin.image_layers = [1, 2]
    for key, value in changes.items():
        setattr(cfg.lavin, key, value)
    return cfg


def encoder() -> ImageEncoder:
    torch.manual_seed(0)
    visual = open_clip.transformer.VisionTransformer(
        image_size=16, patch_size=8, width=8, layers=2, heads=2, mlp_ratio=2.0, output_dim=6
    )
    return ImageEncoder(visual, 6)


def test_build_gives_the_same_fresh_parts_again_in_one_dtype(tmp_path: Path) -> None:
    cfg = recipe(tmp_path)
    options: dict[str, Any] = {"dtype": torch.bfloat16, "placement": Placement()}
    first = lavin.build(cfg, **options, with_encoder=True, encoder=encoder())
    torch.rand(3)
    second = lavin.build(cfg, **options, with_encoder=True, encoder=encoder())
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    assert {each.dtype for each in first.parameters()} == {torch.bfloat16}
    names = ["encoder", "encoder_adapters", "st", "llm", "adapters"]
    assert list(lavin.parts(first)) == names
    assert first.image_embeddings(torch.randn(1, 3, 16, 16)).shape == (1, 2, tiny.WIDTH)
    fed = lavin.build(cfg, **options, with_encoder=False, feature_width=8)
    assert list(lavin.parts(fed)) == names[2:]


def test_exported_names_do_not_depend_on_what_is_wrapped(tmp_path: Path) -> None:
    built = lavin.build(
        recipe(tmp_path),
        dtype=torch.float32,
        placement=Placement(),
        with_encoder=True,
        encoder=encoder(),
    )
    names = dict(built.named_parameters())
    for name in (
        "encoder.visual.conv1.weight",
        "encoder.adapters.1.down.weight",
        "st.up.bias",
        "adapters.layers.0.up.1.bias",
        "adapters.layers.1.router.weight",
        "adapters.modality.weight",
    ):
        assert name in names


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden", 7, r"lavin\.adapter\.hidden: 7 .* multiple of 2"),
        ("dropout", 1.0, r"lavin\.adapter\.dropout: 1\.0 .* below 1"),
    ],
)
def test_adapters_that_cannot_be_are_refused(
    tmp_path: Path, key: str, value: float, message: str
) -> None:
    cfg = recipe(tmp_path)
    setattr(cfg.lavin.adapter, key, value)
    with pytest.raises(ConfigError, match=message):
        lavin.check(cfg, load_llm_config(cfg.llm))


def test_rows_longer_than_the_context_and_other_models_are_refused(tmp_path: Path) -> None:
    cfg = recipe(tmp_path)
    cfg.data.max_tokens = 32
    with pytest.raises(ConfigError, match=r"data\.max_tokens: 32 .* at most 31 fit"):
        lavin.check(cfg, load_llm_config(cfg.llm))
    with pytest.raises(ConfigError, match="gemma2"):
        lavin.check(cfg, tiny.gemma2().config)


def test_a_row_has_bos_and_an_image_in_slots_or_says_that_there_is_none() -> None:
    made = lavin.Layout((1,), (41, 42, 43), (41, 44), 2)
    assert made([7, 8], True) == [1, 41, 42, 43, IMAGE_SLOT, IMAGE_SLOT, 7, 8]
    assert made([7], False) == [1, 41, 44, 7]


def test_the_layout_comes_from_the_tokenizer_without_its_special_tokens() -> None:
    tokenizer = train_tokenizer(["Image: N/A"] * 9, 300)
    made = lavin.layout(Config(), tokenizer)
    assert tokenizer.decode(made.image) == "Image: "
    assert tokenizer.decode(made.no_image) == "Image: N/A"
    assert made.slots == 6
    bos = tokenizer.bos_token_id
    assert made.opening == (() if bos is None else (bos,))


def test_pixels_are_clips_own_or_imagenets_and_images_may_be_squashed() -> None:
    own = load_image_encoder(EncoderConfig(arch="ViT-B-32", pretrained=None))[1]
    other = EncoderConfig(arch="ViT-B-32", pretrained=None, pixels="imagenet", resize="squash")
    changed = load_image_encoder(other)[1]
    assert "CenterCrop" in repr(own) and "CenterCrop" not in repr(changed)
    assert "0.48145466" in repr(own) and "0.485" in repr(changed)
