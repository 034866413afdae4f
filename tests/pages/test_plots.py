"""Plots as pictures: their axes say what can be."""

import base64
import re

from pipeline.pages.plots import Line, Plot, curves, histogram


def labels(plot: Plot) -> list[str]:
    picture = base64.b64decode(plot.picture.partition(",")[2]).decode()
    return re.findall(r">([^<>]+)</text>", picture)


def test_steps_and_words_are_whole_numbers() -> None:
    words = labels(histogram("Words", {"a": [1, 1, 4]}, x="words", whole=True))
    assert words[: words.index("words")] == ["1", "2", "3", "4"]
    steps = labels(curves("Loss", [Line("a", [(39, 0.5)])], ["a"]))
    assert "39" in steps and not any("." in each for each in steps[: steps.index("step")])
