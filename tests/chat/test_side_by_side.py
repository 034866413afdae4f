"""A question goes to both models or to none, so that their conversations stay the same."""

import threading
import time
from dataclasses import replace

import pytest

from pipeline.chat.desk import Answer, Desk, Work, follow
from pipeline.chat.limits import Refused
from pipeline.chat.side_by_side import SideBySide
from tests.chat.conftest import GREEDY, Pace
from tests.chat.small import PICTURE


def told(answers: list[Answer]) -> list[str]:
    for _ in follow(answers):
        pass
    return [each.text for each in answers]


def questions(both: SideBySide) -> list[list[str]]:
    return [[m["content"] for m in each.messages if m["role"] == "user"] for each in both.sessions]


class Hesitant(Desk):
    """Takes its time before it takes a question, or refuses it."""

    seconds = 0.0

    def put(self, work: Work) -> Answer:
        time.sleep(self.seconds)
        return super().put(work)


class Blocked:
    """A desk at which somebody else's question takes its time."""

    def __init__(self, waiting: int) -> None:
        self.desk, self._begun, self.go = Hesitant(waiting), threading.Event(), threading.Event()
        self.desk.put(self._slow)
        assert self._begun.wait(10)

    def _slow(self, _: Answer) -> None:
        self._begun.set()
        self.go.wait(30)


def test_while_one_model_still_speaks_none_is_asked(models, pace: Pace) -> None:
    blocked = Blocked(waiting=2)
    both = SideBySide([models[0], replace(models[1], desk=blocked.desk)])
    first = both.ask("Who?", GREEDY)
    left = told(first[:1])
    with pytest.raises(Refused, match="under way"):
        both.ask("Why?", GREEDY)
    with pytest.raises(Refused, match="under way"):
        both.retry(GREEDY)
    assert questions(both) == [["Who?"]] * 2
    blocked.go.set()
    before = [left[0], told(first)[1]]
    assert told(both.retry(GREEDY)) == before  # of the same question
    assert questions(both) == [["Who?"]] * 2
    told(both.ask("Why?", GREEDY))
    assert questions(both) == [["Who?", "Why?"]] * 2


def test_where_one_desk_is_full_no_model_is_asked(models) -> None:
    alone = SideBySide(models)
    expected = [told(alone.ask(each, GREEDY)) for each in ("Who?", "So?")]
    blocked = Blocked(waiting=1)
    both = SideBySide([models[0], replace(models[1], desk=blocked.desk)])
    first = both.ask("Who?", GREEDY)
    blocked.go.set()
    assert told(first) == expected[0]
    blocked = Blocked(waiting=1)
    both.sessions[1].model = replace(models[1], desk=blocked.desk)
    blocked.desk.put(lambda answer: None)
    blocked.desk.seconds = 1.0  # the other model has answered by then
    for again in (lambda: both.ask("Why?", GREEDY), lambda: both.retry(GREEDY)):
        with pytest.raises(Refused, match="busy"):
            again()
    blocked.go.set()
    blocked.desk.close()
    both.sessions[1].model = models[1]
    assert questions(both) == [["Who?"]] * 2
    assert told(both.ask("So?", GREEDY)) == expected[1]


def test_an_image_that_one_model_cannot_see_is_shown_to_none(models) -> None:
    both = SideBySide([models[0], replace(models[1], transform=None)])
    told(both.ask("Who?", GREEDY))
    with pytest.raises(Refused, match="sees no images"):
        both.show(PICTURE)
    assert questions(both) == [["Who?"]] * 2


def test_two_clicks_at_once_ask_one_question(models, pace: Pace) -> None:
    pace.seconds = 0.02
    desk = Hesitant(20)
    desk.seconds = 0.05
    both = SideBySide([replace(models[0], desk=desk), models[1]])
    start, taken = threading.Barrier(8), []

    def click(number: int) -> None:
        start.wait()
        try:
            taken.append(both.ask(f"Who {number}?", GREEDY))
        except Refused as refusal:
            assert "under way" in str(refusal)

    clicks = [threading.Thread(target=click, args=(number,)) for number in range(8)]
    for each in clicks:
        each.start()
    for each in clicks:
        each.join()
    (answers,) = taken
    told(answers)
    left, right = questions(both)
    assert left == right and len(left) == 1
