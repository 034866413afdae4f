"""Answers come in turn; what fails, or is not wanted any more, keeps nobody waiting."""

import threading

import pytest

from pipeline.chat.desk import END, STOPPED, Answer, Desk, follow
from pipeline.chat.limits import Refused


def say(text: str):
    def work(answer: Answer) -> None:
        answer.text, answer.over = text, END

    return work


def test_answers_come_in_turn_and_a_bounded_number_waits() -> None:
    desk, begun, go, order = Desk(2), threading.Event(), threading.Event(), []

    def slow(answer: Answer) -> None:
        begun.set()
        go.wait(10)
        order.append("slow")

    def noted(name: str):
        return lambda answer: order.append(name)

    desk.put(slow)
    assert begun.wait(10)
    waiting = [desk.put(noted("first")), desk.put(noted("second"))]
    with pytest.raises(Refused, match="busy: 2 questions wait"):
        desk.put(noted("third"))
    waiting[0].stop()  # does not want to wait any more
    go.set()
    desk.close()
    assert order == ["slow", "second"]
    assert [each.over for each in waiting] == [STOPPED, STOPPED]


def test_who_stops_waiting_is_free_at_once_and_takes_no_place() -> None:
    desk, begun, go = Desk(2), threading.Event(), threading.Event()

    def slow(answer: Answer) -> None:
        begun.set()
        go.wait(10)

    slowly = desk.put(slow)
    assert begun.wait(10)
    for _ in range(5):
        answer = desk.put(say("never"))
        answer.stop()
        assert answer.over == STOPPED and not answer.given
    last = desk.put(say("yes"))
    slowly.stop()
    assert slowly.over is None  # ends by itself
    go.set()
    desk.close()
    assert last.text == "yes" and answer.text == ""


def test_a_question_that_fails_gets_a_message_and_the_next_an_answer() -> None:
    desk = Desk(2)
    failed = desk.put(lambda answer: [][0])
    well = desk.put(say("yes"))
    for _ in follow([failed, well]):
        pass
    with pytest.raises(Refused, match="failed on this question"):
        failed.check()
    well.check()
    assert well.text == "yes"
    desk.close()


def test_who_stops_reading_stops_the_answer() -> None:
    desk = Desk(1)

    def endless(answer: Answer) -> None:
        while not answer.stopped:
            answer.text += "."
            threading.Event().wait(0.01)

    answer = desk.put(endless)
    for _ in follow([answer]):
        if answer.text:
            break
    desk.close()  # would wait for ever
    assert answer.stopped
