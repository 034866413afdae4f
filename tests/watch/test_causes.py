"""The first cause is told from its echoes, in one line that says where it was."""

import torch
import torch.distributed as torch_dist

from pipeline.errors import DataError
from pipeline.watch.causes import BUG, USER_ERROR, Cause, Place, cause_of, details_of, first_cause

PLACE = Place(1, "node7", 12, tuple(f"key{i}" for i in range(10)))


def test_a_failure_names_rank_host_step_and_samples() -> None:
    cause = cause_of(ValueError("a value\nand more"), PLACE)
    assert cause.line() == (
        "error: rank 1 (node7) at step 12: ValueError: a value; its samples: key0, key1, key2, "
        "key3, key4, key5, key6, key7, 2 more"
    )
    assert (cause.code, cause.echo) == (BUG, False)


def test_what_travels_comes_back_as_it_was() -> None:
    cause = cause_of(ValueError("x"), PLACE)
    assert Cause.from_json(cause.as_json()) == cause


def test_the_users_mistake_on_all_ranks_is_the_plain_line_of_rank_0() -> None:
    causes = [cause_of(DataError("mend it"), Place(rank, "node7", 3)) for rank in (2, 0, 1)]
    assert first_cause(causes).line() == "error: mend it"
    assert first_cause(causes).code == USER_ERROR
    assert causes[0].line() == "error: rank 2 (node7) at step 3: mend it"
    assert details_of(DataError("mend it")) == ""


def test_a_broken_connection_is_not_the_cause_where_there_is_another() -> None:
    gloo = RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:9")
    broken = [
        cause_of(gloo, Place(0, "node7")),
        cause_of(torch_dist.DistBackendError("aborted"), Place(2, "node7")),
    ]
    real = cause_of(ValueError("real"), PLACE)
    assert first_cause([*broken, real]) == real
    assert first_cause(broken) == broken[0]


def test_out_of_memory_says_what_helps_and_shows_no_traceback() -> None:
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\nmore"
    )
    cause = cause_of(error, Place(0, "node7", 3))
    assert "rank 0 (node7) at step 3: out of GPU memory (Tried to allocate 2.00 GiB" in cause.line()
    assert "micro_batch" in cause.line() and "activation_checkpointing=true" in cause.line()
    assert "\n" not in cause.line() and details_of(error) == ""
    allocator = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")
    for shortage in (MemoryError(), allocator):
        assert "out of main memory" in cause_of(shortage, PLACE).line()
