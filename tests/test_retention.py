"""Which checkpoints stay, and what a recipe may ask for."""

import itertools
import math
from dataclasses import replace

import pytest

from pipeline.config import Config, EncoderAdaptConfig, LLMTuneConfig, STAlignConfig
from pipeline.errors import ConfigError
from pipeline.recipe import validate
from pipeline.retention import Retention

NO_METRIC = dict.fromkeys(range(1, 8))


def kept(retention: Retention, metrics: dict[int, float | None]) -> list[int]:
    gone = retention.outdated(metrics)
    return [step for step in sorted(metrics) if step not in gone]


def test_the_last_stay_whatever_the_order_they_are_listed_in() -> None:
    for order in itertools.permutations((3, 1, 20, 100)):
        assert kept(Retention(2), dict.fromkeys(order)) == [20, 100]


def test_every_kth_stays_for_good() -> None:
    assert kept(Retention(1, every=3), NO_METRIC) == [3, 6, 7]


def test_the_best_stays_in_the_metrics_own_direction() -> None:
    metrics: dict[int, float | None] = {1: 0.3, 2: 0.1, 3: 0.9, 4: 0.5}
    assert kept(Retention(1, best="loss"), metrics) == [2, 4]
    assert kept(Retention(1, best="perplexity"), metrics) == [2, 4]
    assert kept(Retention(1, best="cider"), metrics) == [3, 4]
    assert kept(Retention(1, best="i2t_r1"), metrics) == [3, 4]


def test_what_was_not_measured_or_is_no_number_is_never_the_best() -> None:
    metrics: dict[int, float | None] = {1: math.nan, 2: None, 3: 0.2, 4: -math.inf, 5: 0.4}
    assert kept(Retention(1, best="loss"), metrics) == [3, 5]


def test_of_equals_the_older_is_the_best_so_that_it_stays_one() -> None:
    assert kept(Retention(1, best="loss"), {1: 0.2, 2: 0.2, 3: 0.5}) == [1, 3]


def test_the_newest_always_stays() -> None:
    for retention in (Retention(1), Retention(1, every=100), Retention(3, best="loss")):
        assert 7 in kept(retention, NO_METRIC)


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        (STAlignConfig(keep_every=700), "keep_every=700: .*use a multiple of st_align"),
        (STAlignConfig(keep_every=-500), "keep_every=-500 must be 1 or more"),
        (STAlignConfig(keep_best="cider"), "use one of loss, perplexity, or null"),
        (STAlignConfig(keep_best="loss", eval_every=300), "multiple of st_align.eval_every=300"),
    ],
)
def test_what_could_never_be_kept_is_refused(phase: STAlignConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(replace(Config(), st_align=phase))


def test_each_phase_may_keep_the_best_of_what_it_measures() -> None:
    tune = LLMTuneConfig(keep_best="cider", caption_records=4, keep_every=1000)
    adapt = EncoderAdaptConfig(keep_best="t2i_r5")
    validate(replace(Config(), encoder_adapt=adapt, llm_tune=tune))
