"""Who a process is, under every launcher; and what ranks exchange."""

import pytest
import torch

from pipeline import dist
from pipeline.errors import ConfigError

WORLD = dist.World(0, 1, 0, 1, torch.device("cpu"))


def test_alone() -> None:
    found = dist.resolve({})
    assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")


def test_torchrun_and_deepspeed_variables_come_first() -> None:
    environment = {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "123",
        "SLURM_PROCID": "0",
        "SLURM_STEP_NUM_TASKS": "1",
    }
    found = dist.resolve(environment)
    assert (found["RANK"], found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == ("3", "1", "2")
    assert found["MASTER_ADDR"] == "node1"


def test_srun_step() -> None:
    environment = {
        "SLURM_PROCID": "5",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
        "SLURM_STEP_NODELIST": "n7",
        "SLURM_JOB_ID": "77",
    }
    found = dist.resolve(environment)
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_WORLD_SIZE"]) == ("5", "8", "4")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("n7", "20077")


def test_a_batch_script_without_srun_is_alone() -> None:
    assert dist.resolve({"SLURM_PROCID": "0", "SLURM_JOB_ID": "7"})["WORLD_SIZE"] == "1"


def test_a_rank_without_an_address_is_told_what_to_set() -> None:
    with pytest.raises(ConfigError, match="MASTER_ADDR is not set"):
        dist.resolve({"RANK": "0", "WORLD_SIZE": "2"})


def test_what_rank_0_finds_wrong_is_the_users_error_everywhere() -> None:
    def fails() -> str:
        raise ConfigError("name another")

    assert dist.on_main(lambda: {"a": [1]}, WORLD) == {"a": [1]}
    with pytest.raises(ConfigError, match="name another"):
        dist.on_main(fails, WORLD)


def test_one_rank_agrees_with_itself() -> None:
    assert dist.agree_any(True, WORLD) and not dist.agree_any(False, WORLD)
    assert dist.sum_over_ranks([1.5, 2.0], WORLD) == [1.5, 2.0]
    assert dist.gather_json({"ü": [1]}, WORLD) == [{"ü": [1]}]
