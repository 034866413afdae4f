"""When rank 0 ends a run: failures and ends at once, silence and standstill after the timeout."""

from pipeline.watch.causes import Place, cause_of
from pipeline.watch.rollcall import Pulse, RollCall, pulse_from_json

HOSTS = ["a", "a", "b"]


def all_heard(roll: RollCall, *, but: int | None = None, **pulse: dict[int, float]) -> None:
    for rank, host in enumerate(HOSTS):
        if rank != but:
            still = pulse.get("still", {}).get(rank, 0.0)
            waits = bool(pulse.get("waits", {}).get(rank, 0.0))
            steady = bool(pulse.get("steady", {}).get(rank, 1.0))
            roll.heard(Pulse(Place(rank, host, 5, ("k",)), still, steady, waits))


def test_nothing_happens_while_all_are_heard_of() -> None:
    roll = RollCall(HOSTS, 45.0)
    for _ in range(200):
        all_heard(roll)
        assert roll.passed(1.0) is None


def test_an_ended_connection_ends_the_run_where_the_rank_was_heard_last() -> None:
    roll = RollCall(HOSTS, 45.0)
    all_heard(roll)
    roll.gone(2)
    assert roll.passed(0.5) is None  # another may have been first
    cause = roll.passed(0.6)
    assert cause is not None and cause.line().startswith("error: rank 2 (b) at step 5: is gone")
    assert not cause.speaks and not cause.frozen


def test_a_failure_that_arrives_after_its_echoes_is_still_the_cause() -> None:
    roll = RollCall(HOSTS, 45.0)
    roll.failed(cause_of(RuntimeError("Connection closed by peer"), Place(0, "a", 5)))
    assert roll.passed(0.5) is None
    roll.failed(cause_of(ValueError("real"), Place(1, "a", 5)))
    roll.gone(1)
    cause = roll.passed(1.0)
    assert cause is not None and "rank 1 (a) at step 5: ValueError: real" in cause.line()


def test_nobody_waits_once_all_have_reported() -> None:
    roll = RollCall(HOSTS, 45.0)
    for rank in range(3):
        roll.failed(cause_of(ValueError("x"), Place(rank, "a")))
    assert roll.passed(0.0) is not None


def test_a_silent_rank_is_named_after_the_timeout() -> None:
    roll = RollCall(HOSTS, 45.0)
    for _ in range(44):
        all_heard(roll, but=1)
        assert roll.passed(1.0) is None
    cause = roll.passed(1.0)
    assert cause is not None and cause.place.rank == 1 and cause.frozen and not cause.speaks


def test_one_rank_may_be_still_while_another_works() -> None:
    roll = RollCall(HOSTS, 45.0)
    all_heard(roll, still={1: 4000.0, 2: 4000.0})
    assert roll.passed(1.0) is None


def test_a_standstill_of_all_is_the_fault_of_the_one_that_does_not_wait() -> None:
    roll = RollCall(HOSTS, 45.0)
    all_heard(roll, still={0: 47.0, 1: 45.0, 2: 47.0}, waits={0: 1.0, 2: 1.0})
    cause = roll.passed(1.0)
    assert cause is not None and cause.place.rank == 1 and cause.still and cause.speaks


def test_before_the_first_step_a_standstill_may_last_ten_times_as_long() -> None:
    roll = RollCall(HOSTS, 45.0)
    all_heard(roll, still={0: 400.0, 1: 400.0, 2: 400.0}, steady={1: 0.0})
    assert roll.passed(1.0) is None
    all_heard(roll, still={0: 451.0, 1: 452.0, 2: 451.0}, steady={1: 0.0})
    assert roll.passed(1.0) is not None


def test_who_left_after_its_work_is_missed_by_nobody() -> None:
    roll = RollCall(HOSTS, 45.0)
    roll.left(1)
    roll.gone(1)
    for _ in range(100):
        all_heard(roll, but=1)
        assert roll.passed(1.0) is None


def test_a_pulse_comes_back_as_it_was() -> None:
    from dataclasses import asdict

    pulse = Pulse(Place(1, "a", 5, ("k",)), 3.0, True, True)
    assert pulse_from_json({**asdict(pulse)}) == pulse
