"""The memory model by itself: what ZeRO partitions, what frozen parameters cost, sizes on disk."""

import pytest

from pipeline.ds_config import read_ds_config
from pipeline.memory import (
    Parameters,
    checkpoint_bytes,
    export_bytes,
    persistence_threshold,
    training_memory,
)

GIB = 2**30
LLAMA = 6_740_000_000


def memory(name: str, parameters: Parameters, *, precision: str = "bf16", ranks: int = 1):
    return training_memory(
        parameters, read_ds_config("test", name), precision=precision, ranks=ranks
    )


@pytest.mark.parametrize(("ranks", "gib"), [(8, 1.57), (16, 0.78), (32, 0.39), (64, 0.20)])
def test_a_frozen_llm_under_zero3_costs_two_bytes_shared_by_the_ranks(ranks, gib) -> None:
    # The figures of ANCHORS.md C.5 for a 6.74 B LLM.
    found = memory("zero3", Parameters(0, LLAMA), ranks=ranks)
    assert found.weights / GIB == pytest.approx(gib, abs=0.006)
    assert found.gradients == found.optimizer == found.buckets == 0


def test_all_of_it_training_on_one_rank_takes_what_the_zero_paper_counts() -> None:
    # (2 + 2 + 12) bytes a parameter, and 4 more while a step casts the gradients.
    found = memory("zero1", Parameters(LLAMA, 0))
    assert found.weights + found.gradients + found.optimizer == (2 + 2 + 12 + 4) * LLAMA


def test_weights_in_few_bits_take_what_they_are_said_to() -> None:
    few = Parameters(10**6, LLAMA, quantized=LLAMA - 10**8, quantized_bytes=3.4e9)
    found, full = (memory("zero2", each) for each in (few, Parameters(10**6, LLAMA)))
    assert found.weights == 2 * (10**8 + 10**6) + 3.4e9
    assert (found.gradients, found.optimizer) == (full.gradients, full.optimizer)


@pytest.mark.parametrize("ds_config", ["zero1", "zero2", "zero3"])
def test_more_ranks_never_need_more_memory_each(ds_config: str) -> None:
    totals = [
        memory(ds_config, Parameters(10**8, 10**9), ranks=ranks).optimizer for ranks in (1, 2, 8)
    ]
    assert totals[0] == 2 * totals[1] == 8 * totals[2]


def test_zero_stages_partition_one_thing_after_the_other() -> None:
    one, two, three = (
        memory(name, Parameters(10**8, 10**9), ranks=4) for name in ("zero1", "zero2", "zero3")
    )
    assert one.optimizer == two.optimizer == three.optimizer
    assert one.gradients > two.gradients == three.gradients
    assert two.weights == 4 * three.weights


def test_zero3_keeps_a_small_model_gathered_and_a_large_one_not() -> None:
    small, large = Parameters(0, 10**6), Parameters(0, 10**11, largest=5 * 10**8)
    assert memory("zero3", small, ranks=4).gathered == 2 * 10**6 * 3 / 4
    assert memory("zero3", large, ranks=4).gathered < 0.02 * 2 * 10**11
    assert memory("zero3", small, ranks=1).gathered == 0


def test_offloading_moves_states_to_the_host() -> None:
    parameters = Parameters(10**8, 10**9)
    there, moved = memory("zero3", parameters), memory("zero3_offload", parameters)
    assert moved.weights == moved.optimizer == 0
    assert moved.host == there.weights + there.optimizer
    assert moved.gradients == there.gradients


def test_float32_has_no_second_copy_of_its_gradients() -> None:
    assert memory("zero2", Parameters(100, 0), precision="fp32").gradients == 400


@pytest.mark.parametrize(
    ("ds_config", "precision", "each"),
    [("zero3", "bf16", 12), ("zero1", "bf16", 14), ("zero1", "fp32", 16)],
)
def test_a_checkpoint_holds_what_trains_and_its_moments(ds_config, precision, each) -> None:
    # Bytes of a trained parameter as DEEPSPEED.md measured them.
    loaded = read_ds_config("test", ds_config)
    found = checkpoint_bytes(10**7, loaded, precision=precision, ranks=2)
    assert found == pytest.approx(each * 10**7, rel=1e-3)
    assert export_bytes(10**7) == 4 * 10**7


def test_the_threshold_of_whole_tensors_is_the_jsons_or_deepspeeds() -> None:
    assert persistence_threshold({}) == 100_000
    tight = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
    assert persistence_threshold(tight) == 0
