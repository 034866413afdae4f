"""What an export says of its family, against a recipe: keys that no tensor's shape tells."""

from dataclasses import asdict
from typing import Any

import pytest

from pipeline.config import Config, LavinConfig, LlamaAdapterConfig, MMAdapterConfig
from pipeline.errors import CheckpointError
from pipeline.models.families import added_by, check_made_with, is_added


def config(family: str = "lavin", **changes: Any) -> Config:
    return Config(family=family, lavin=LavinConfig(**changes))


def test_the_same_model_passes_and_so_does_another_dropout() -> None:
    made = added_by(config())
    check_made_with(made, config(), "export")
    check_made_with(made, config(adapter=MMAdapterConfig(dropout=0.5)), "export")
    check_made_with(None, config(routing="token"), "export")  # nothing of the family is in it


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"routing": "token"}, r"made with lavin\.routing=cls,"),
        ({"image_layers": [2, 1]}, r"lavin\.image_layers=\[\],"),
        ({"adapter": MMAdapterConfig(temperature=5)}, r"lavin\.adapter\.temperature=10\.0,"),
        ({"adapter": MMAdapterConfig(hidden=4)}, r"lavin\.adapter\.hidden=8,"),
        ({"adapter": MMAdapterConfig(scale=2)}, r"lavin\.adapter\.scale=1\.0,"),
    ],
)
def test_another_model_of_the_same_shapes_is_refused_with_the_key(
    changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(CheckpointError, match=expected):
        check_made_with(added_by(config()), config(**changes), "export")


def test_prompts_of_fewer_layers_are_refused_though_they_would_fit() -> None:
    made = Config(family="llama_adapter", llama_adapter=LlamaAdapterConfig(layers=2))
    more = Config(family="llama_adapter", llama_adapter=LlamaAdapterConfig(layers=3))
    with pytest.raises(CheckpointError, match=r"made with llama_adapter\.layers=2,"):
        check_made_with(added_by(made), more, "export")
    made.llama_adapter.bias_scale = True
    with pytest.raises(CheckpointError, match=r"llama_adapter\.bias_scale=true,"):  # as typed
        check_made_with(added_by(made), more, "export")


def test_every_key_of_a_family_is_compared_but_its_dropout() -> None:
    keys = set(added_by(config())) - {"family"}
    inner = asdict(LavinConfig())
    expected = {f"lavin.{key}" for key in inner if key != "adapter"}
    expected |= {f"lavin.adapter.{key}" for key in inner["adapter"] if key != "dropout"}
    assert keys == expected


def test_a_family_s_tensors_are_told_from_those_of_its_base_models() -> None:
    added = ["encoder.adapters.0.router.bias", "adapters.modality.weight", "adaption.late.0.gate"]
    assert all(map(is_added, [*added, "affine.layers.0.mlp.scale"]))
    assert not any(map(is_added, ["encoder.visual.proj", "st.up.weight", "llm.lm_head.weight"]))
