"""What a visitor of the page gets back of a question, and what is remarked on its answers."""

from dataclasses import replace

from pipeline.chat.visit import Visit
from tests.chat.conftest import GREEDY
from tests.chat.test_side_by_side import Blocked

EMOJIS = "\N{PILE OF POO}" * 200  # few characters, many tokens


def test_a_question_that_is_refused_late_comes_back(models) -> None:
    visit = Visit(models)
    steps = list(visit.ask(EMOJIS, GREEDY))
    assert steps[0][0] == ""  # taken at first
    left, remark = steps[-1]
    assert left == EMOJIS and "eim: The message is too long" in remark
    assert "baseline: The message is too long" in remark
    assert visit.messages() == [[], []]


def test_a_question_that_one_model_answers_stays_in_the_conversation(models) -> None:
    short = replace(models[0], rows=replace(models[0].rows, max_tokens=20))
    visit = Visit([short, models[1]])
    steps = list(visit.ask("Who is number seven?", GREEDY))
    assert steps[0][0] == "" and {left for left, _ in steps[1:]} == {None}
    assert "eim: The message is too long" in steps[-1][1]
    assert [len(each) for each in visit.messages()] == [0, 2]


def test_a_question_that_is_stopped_while_it_waits_comes_back_and_the_remark_says_so(
    models,
) -> None:
    blocked = Blocked(waiting=2)
    waiting = replace(models[0], desk=blocked.desk)
    visit = Visit([waiting])
    asking = visit.ask("Who?", GREEDY)
    assert next(asking) == ("", "")
    visit.stop()
    *_, (left, remark) = asking  # at once: what it waits for goes on
    assert left == "Who?" and remark == "The question was stopped before its answer began."
    assert visit.messages() == [[]]
    asking = visit.ask("Who?", GREEDY)
    next(asking)
    visit.clear()  # wants to hear no more of it
    *_, (left, remark) = asking
    assert left is None and remark == ""
    blocked.go.set()


def test_who_of_two_was_stopped_while_waiting_is_said(models) -> None:
    blocked = Blocked(waiting=2)
    visit = Visit([models[0], replace(models[1], desk=blocked.desk)])
    lefts = []
    for left, remark in visit.ask("Who?", GREEDY):
        lefts.append(left)
        if "eim: The answer was cut" in remark:
            visit.stop()
    assert lefts[0] == "" and set(lefts[1:]) == {None}
    assert remark.splitlines()[1] == ("baseline: The question was stopped before its answer began.")
    blocked.go.set()
