"""The memory model against the tensors that DeepSpeed really holds.

Measured with deepspeed 0.19.8 on CPUs, a GPT-2 of 27 M parameters of which 9 M train: between two
steps predicted and counted bytes agree to 0.2 % for every stage, precision and number of ranks
(what differs are tensors that ZeRO-3 keeps whole), after a backward pass to 1.2 %.
"""

import json

import pytest

from pipeline.ds_config import read_ds_config
from pipeline.memory import Memory, Parameters, training_memory
from tests.dist.launch import launch, succeeded

pytestmark = pytest.mark.dist
CASES = [
    f"{stage}:{precision}"
    for stage in ("zero1", "zero2", "zero3")
    for precision in ("fp32", "bf16")
]


@pytest.fixture(scope="module", params=[1, 2])
def measured(request: pytest.FixtureRequest) -> list[dict]:
    done = launch("tests/dist/memory_program.py", CASES, ranks=request.param, launcher="deepspeed")
    lines = succeeded(done).splitlines()
    found = [json.loads(line.partition("MEASURED ")[2]) for line in lines if "MEASURED " in line]
    assert len(found) == len(CASES)
    return found


def predicted(case: dict) -> Memory:
    parameters = Parameters(case["trained"], case["frozen"])
    loaded = read_ds_config("test", case["ds_config"])
    return training_memory(parameters, loaded, precision=case["precision"], ranks=case["ranks"])


def gradients(case: dict) -> float:
    """In the compute dtype; the float32 copy lives only inside the step."""
    size = 2 if case["precision"] == "bf16" else 4
    return size * case["trained"] / (1 if case["ds_config"] == "zero1" else case["ranks"])


def test_weights_and_optimizer_take_what_is_predicted(measured: list[dict]) -> None:
    for case in measured:
        expected = predicted(case)
        resident = expected.weights + expected.optimizer
        if case["ds_config"] == "zero3":  # holds its gradient buffers between the steps
            resident += gradients(case) + expected.buckets
        assert case["after_step"] == pytest.approx(resident, rel=0.005), case


def test_gradients_take_what_is_predicted(measured: list[dict]) -> None:
    for case in measured:
        expected = predicted(case)
        held = expected.weights + expected.optimizer + gradients(case)
        if case["ds_config"] != "zero2":  # gives its buckets back when the backward pass ends
            held += expected.buckets
        assert case["after_backward"] == pytest.approx(held, rel=0.02), case
        assert case["after_backward"] <= 1.005 * expected.total, case
