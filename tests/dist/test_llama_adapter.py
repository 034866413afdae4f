"""LLaMA-Adapter in ZeRO-3 partitions: ranks with and without images agree with one process."""

import json
from typing import Any

import pytest

from tests.dist.launch import launch, succeeded
from tests.models import tiny
from tests.tiny import TIGHT_ZERO3

pytestmark = pytest.mark.dist
VERSIONS = pytest.mark.parametrize("version", ["v1", "v2"])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """By the number of ranks."""
    folder = tmp_path_factory.mktemp("llama_adapter")
    tiny.llama().save_pretrained(folder / "llm")
    (folder / "tight.json").write_text(json.dumps(TIGHT_ZERO3))
    found = {}
    for ranks in (1, 2):
        out = folder / f"{ranks}.json"
        arguments = [str(folder / "llm"), str(folder / "tight.json"), str(out)]
        succeeded(launch("tests/dist/llama_adapter_program.py", arguments, ranks=ranks))
        found[ranks] = json.loads(out.read_text())
    return found


@VERSIONS
def test_a_rank_without_images_and_one_with_them_train_as_one_process(
    results: dict[int, dict[str, Any]], version: str
) -> None:
    one, two = results[1][version], results[2][version]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-4)
    assert len(set(one["losses"])) == len(one["losses"])
    assert one["trained"] == two["trained"]
    assert not any(name.startswith("model.llm.") and "norm" not in name for name in one["trained"])


@VERSIONS
@pytest.mark.parametrize("ranks", [1, 2])
def test_recomputed_activations_change_no_loss(
    results: dict[int, dict[str, Any]], version: str, ranks: int
) -> None:
    plain, saving = (results[ranks][name] for name in (version, f"{version}-saving"))
    assert saving["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert saving["norms"] == pytest.approx(plain["norms"], rel=1e-4)


@VERSIONS
def test_both_ranks_generate_what_one_process_does(
    results: dict[int, dict[str, Any]], version: str
) -> None:
    one, two = results[1][version], results[2][version]
    assert len(one["tokens"]) == 5 and one["tokens"] == two["tokens"]
