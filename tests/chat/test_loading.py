"""Which models talk, and with which settings they start."""

from pathlib import Path

import pytest

from pipeline.chat.loading import load_chat_models
from pipeline.errors import ConfigError
from pipeline.recipe import load_recipe
from tests.chat.small import ALONE, write_exports


def test_what_was_asked_of_the_one_holds_for_the_other(tmp_path: Path) -> None:
    """The base weights have moved since both were trained."""
    eim, baseline = write_exports(tmp_path)
    moved = tmp_path / "elsewhere"
    (tmp_path / "weights_lavin" / "llm").rename(moved)
    pair = [f"checkpoint={eim}", f"beside={baseline}", f"llm.path={moved}"]
    loaded = load_chat_models(load_recipe(pair, "chat"), ALONE)
    assert [each.name for each in loaded] == ["eim", "baseline"]


def test_a_setting_that_every_question_would_fail_by_is_refused_at_the_start(
    tmp_path: Path,
) -> None:
    words = [f"checkpoint={tmp_path}", "temperature=0.005", "recipe=quickstart"]
    with pytest.raises(ConfigError, match=r"temperature is 0\.005; it can be 0, or"):
        load_chat_models(load_recipe(words, "chat"), ALONE)
