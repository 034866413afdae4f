"""A signal asks for a stop after the step; a second one does what it always did."""

import os
import signal
from types import SimpleNamespace

import torch

from pipeline.callbacks.preempt import Preempt
from pipeline.dist import World


def fake_trainer() -> SimpleNamespace:
    return SimpleNamespace(world=World(0, 1, 0, 1, torch.device("cpu")), stop_reason=None)


def test_a_signal_stops_after_the_step_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    trainer, preempt = fake_trainer(), Preempt(stop_after=None)
    preempt.on_start(trainer)
    preempt.on_step(trainer, None)
    assert trainer.stop_reason is None
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is before  # a second signal is not caught
    preempt.on_step(trainer, None)
    assert trainer.stop_reason == "signal"
    preempt.on_stop(trainer)
    assert signal.getsignal(signal.SIGTERM) is not preempt._remember


def test_stop_after_counts_the_steps_of_this_start() -> None:
    trainer, preempt = fake_trainer(), Preempt(stop_after=2)
    preempt.on_start(trainer)
    preempt.on_step(trainer, None)
    assert trainer.stop_reason is None
    preempt.on_step(trainer, None)
    assert trainer.stop_reason == "stop_after=2"
    preempt.on_stop(trainer)


def test_a_signal_after_the_last_step_still_stops_what_would_follow() -> None:
    trainer, preempt = fake_trainer(), Preempt(stop_after=None)
    preempt.on_start(trainer)
    preempt.on_step(trainer, None)
    os.kill(os.getpid(), signal.SIGUSR2)
    preempt.on_stop(trainer)
    assert trainer.stop_reason == "signal"
