"""An answer ends before its first stop, the same however it is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.chat.stops import before_stops

TEXTS = st.text("ab", max_size=12)


@pytest.mark.parametrize(
    ("text", "stops", "whole", "said", "stopped"),
    [
        ("one two", [], False, "one two", False),
        ("one two", ["two"], False, "one ", True),
        ("one tw", ["two"], False, "one ", False),  # held back
        ("one tw", ["two"], True, "one tw", False),
        ("one two", ["two", "one"], True, "", True),
        ("ababc", ["abc"], False, "ab", True),
        ("abcd", ["bcde", "cd"], False, "ab", True),
        ("abcde", ["bcde", "cd"], False, "ab", True),  # as if looked at earlier
    ],
)
def test_what_comes_before_the_first_stop(text, stops, whole, said, stopped) -> None:
    assert before_stops(text, stops, whole=whole) == (said, stopped)


@given(text=TEXTS, stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=4))
def test_what_was_shown_is_never_taken_back(text: str, stops: list[str]) -> None:
    final = before_stops(text, stops, whole=True)
    shown = ""
    for length in range(len(text) + 1):
        now = before_stops(text[:length], stops, whole=False)
        assert now.text.startswith(shown) and final.text.startswith(now.text)
        shown = now.text
        if now.stopped:
            assert now == final
    assert not any(stop in final.text for stop in stops)
