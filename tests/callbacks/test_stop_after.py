"""`stop_after` counts the steps of this start, and leaves a segment's end alone."""

from types import SimpleNamespace

from pipeline.callbacks.stop_after import StopAfter


def test_stop_after_counts_the_steps_of_this_start() -> None:
    trainer, callback = SimpleNamespace(stop_reason=None, finished=False), StopAfter(2)
    callback.on_step(trainer, None)
    assert trainer.stop_reason is None
    callback.on_step(trainer, None)
    assert trainer.stop_reason == "stop_after=2"


def test_a_segment_that_is_finished_is_not_stopped_before_its_export() -> None:
    trainer, callback = SimpleNamespace(stop_reason=None, finished=True), StopAfter(1)
    callback.on_step(trainer, None)
    assert trainer.stop_reason is None
