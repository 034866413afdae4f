"""The LaVIN family as a recipe asks for it: the layout of a row, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, EncoderConfig, LavinConfig, LLMConfig, MMAdapterConfig
from pipeline.errors import ConfigError
from pipeline.models import lavin
from pipeline.models.llm import load_llm_config
from pipeline.models.multimodal import IMAGE_SLOT
from pipeline.models.scratch import train_tokenizer
from tests.models import tiny
from tests.models.test_tower import plain


@pytest.mark.parametrize("bos", [None, "b"])
def test_a_row_is_laid_out_as_the_reference_s_behind_its_modality_token(bos: str | None) -> None:
    tokenizer = train_tokenizer(["Image: N/A Image: b"], 300)
    tokenizer.bos_token = bos
    layout = lavin.layout(Config(lavin=LavinConfig(image_layers=[1, 2])), tokenizer)
    opening = [] if bos is None else [tokenizer.bos_token_id]
    image, none = (tokenizer.encode(f"Image: {end}") for end in ("", "N/A"))
    assert layout([7, 8], True) == [*opening, *image, IMAGE_SLOT, IMAGE_SLOT, 7, 8]
    assert layout([7, 8], False) == [*opening, *none, 7, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lavin": LavinConfig(adapter=MMAdapterConfig(hidden=3))}, r"lavin\.adapter\.hidden: 3"),
        (
            {"lavin": LavinConfig(adapter=MMAdapterConfig(dropout=1.5))},
            r"lavin\.adapter\.dropout: 1\.5 .* below 1",
        ),
        ({"lavin": LavinConfig(image_layers=[5])}, r"image_layers: \[5\]: the tower has 4 blocks"),
        ({"encoder": EncoderConfig(scales=[1, 2])}, r"encoder\.scales=\[1, 2\]: family=lavin"),
        ({"encoder": EncoderConfig(normalize=True)}, r"encoder\.normalize=true: family=lavin"),
    ],
)
def test_a_tower_that_cannot_be_is_refused_in_one_line(
    changes: dict[str, Any], message: str
) -> None:
    config = Config(**{"lavin": LavinConfig(image_layers=[2, 4]), **changes})
    with pytest.raises(ConfigError, match=message) as raised:
        lavin.tower(config, plain())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("task", "tokens", "fits"),
    [
        ("scienceqa", 31, True),
        ("scienceqa", 32, False),
        ("captions", 17, True),
        ("captions", 18, False),
    ],
)
def test_rows_are_no_longer_than_the_context(
    tmp_path: Path, task: str, tokens: int, fits: bool
) -> None:
    tiny.llama().save_pretrained(tmp_path)  # a context of 32
    config = Config(llm=LLMConfig(path=str(tmp_path)), lavin=LavinConfig(image_layers=[1, 2]))
    config.data.task, config.data.max_tokens = task, tokens
    if fits:
        lavin.check(config, load_llm_config(config.llm))
        return
    with pytest.raises(ConfigError, match=rf"data\.max_tokens: {tokens} .* context of 32"):
        lavin.check(config, load_llm_config(config.llm))
