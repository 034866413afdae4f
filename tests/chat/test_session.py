"""A conversation: its turns cost their own tokens, it can be stopped, asked again, started anew."""

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image

from pipeline.chat.desk import END, LENGTH, STOPPED, TIME, Answer, follow
from pipeline.chat.limits import Limits, Refused, Sampling
from pipeline.chat.model import ChatModel
from pipeline.chat.session import Session
from pipeline.data.chat_templates import chat_template
from pipeline.models.counting import counting
from tests.chat.conftest import GREEDY, Pace
from tests.chat.small import PICTURE
from tests.data.chats import CHATML

DRAWN = replace(GREEDY, temperature=1.5, top_p=0.95)


def finished(answer: Answer) -> Answer:
    for _ in follow([answer]):
        pass
    answer.check()
    return answer


def asked(model: ChatModel, *questions: str, sampling: Sampling = GREEDY) -> list[str]:
    session = Session(model)
    return [finished(session.ask(each, sampling)).text for each in questions]


def with_end(model: ChatModel, image: Image.Image | None) -> ChatModel:
    """The same model, for which a token that it soon says ends an answer."""
    session = Session(replace(model, ends=range(len(model.tokenizer))))  # any token
    session.show(image)
    assert finished(session.ask("Who?", GREEDY)).over == END
    ((_, said),) = session._talk.turns
    return replace(model, ends=said)


@pytest.mark.parametrize("image", [None, PICTURE])
def test_the_second_turn_forwards_its_own_tokens_alone(models, image) -> None:
    model = with_end(models[0], image)
    session = Session(model)
    session.show(image)
    llm = model.models[image is not None].llm
    with counting(llm) as counter:
        first = finished(session.ask("Who?", GREEDY))
        prompt, said = first.tokens
        assert first.over == END and counter.take() == (said, prompt + said - 1)
        second = finished(session.ask("And now?", GREEDY))
        longer, said_now = second.tokens
        # Of what came before, only the end of the answer has not gone through yet.
        new = longer - (prompt + said) + 1
        assert counter.take() == (said_now, new + said_now - 1)
    assert longer > prompt + said


def test_a_cut_answer_is_gone_on_from_too(models) -> None:
    session = Session(models[0])
    assert finished(session.ask("Who?", GREEDY)).over == LENGTH
    with counting(models[0].models[0].llm) as counter:
        second = finished(session.ask("And now?", GREEDY))
        _, positions = counter.take()
    prompt, said = second.tokens
    assert positions < prompt + said - 1


@pytest.mark.parametrize("image", [None, PICTURE])
def test_answers_are_those_of_a_model_that_keeps_nothing(models, image) -> None:
    forgetful = replace(models[0], _kept=_Forgetful())
    texts = []
    for model in (models[0], forgetful):
        session = Session(model)
        session.show(image)
        texts.append([finished(session.ask(q, GREEDY)).text for q in ("Who?", "Why?", "So?")])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3  # or this would say nothing


class _Forgetful(dict):
    """Keeps no row."""

    def __setitem__(self, key: object, value: object) -> None:
        pass


def test_users_are_separate_and_models_are_too(models) -> None:
    alone = [asked(model, "Who?", "Why?") for model in models]
    assert alone[0] != alone[1]
    sessions = [Session(models[0]) for _ in range(6)]  # more than the model keeps rows for
    first = [finished(each.ask("Who?", GREEDY)).text for each in sessions]
    second = [finished(each.ask("Why?", GREEDY)).text for each in sessions]
    assert first == [alone[0][0]] * 6 and second == [alone[0][1]] * 6
    assert len(models[0]._kept) == models[0].limits.config.cached


def test_an_image_changes_the_answer_and_starts_a_new_conversation(models) -> None:
    session = Session(models[0])
    without = finished(session.ask("Who?", GREEDY)).text
    session.show(PICTURE)
    assert session.messages == []
    seen = finished(session.ask("Who?", GREEDY)).text
    session.clear()
    assert seen == finished(session.ask("Who?", GREEDY)).text != without  # about the same image
    session.show(Image.new("RGB", (50, 20), "red"))
    assert finished(session.ask("Who?", GREEDY)).text != seen


def test_a_seed_repeats_what_was_drawn_and_a_retry_draws_anew(models) -> None:
    session = Session(models[0])
    first = finished(session.ask("Who?", DRAWN)).text
    assert asked(models[0], "Who?", sampling=DRAWN) == [first]
    assert asked(models[0], "Who?", sampling=replace(DRAWN, seed=5)) != [first]
    again = finished(session.retry(DRAWN)).text
    assert again != first
    assert [each["content"] for each in session.messages] == ["Who?", again]
    narrow = replace(DRAWN, top_p=1e-6)  # the likeliest token alone is left
    assert asked(models[0], "Who?", sampling=narrow) == asked(models[0], "Who?")


def test_a_stop_keeps_what_was_said_and_the_next_question_follows_it(models, pace: Pace) -> None:
    pace.seconds = 0.03
    session = Session(models[0])
    answer = session.ask("Who?", replace(GREEDY, max_new_tokens=48))
    for _ in follow([answer]):
        if answer.text and answer.over is None and not answer.stopped:
            with pytest.raises(Refused, match="under way"):
                session.ask("Why?", GREEDY)
            session.stop()
    assert answer.over == STOPPED and 0 < answer.tokens[1] < 48
    assert session.messages[-1]["content"] == answer.text
    pace.seconds = 0.0
    assert finished(session.ask("Why?", GREEDY)).tokens[0] > answer.tokens[0]


def test_an_answer_has_its_time(models, pace: Pace) -> None:
    pace.seconds = 0.05
    config = replace(models[0].limits.config, max_seconds=0.2)
    hasty = replace(models[0], limits=Limits.of(config))
    answer = finished(Session(hasty).ask("Who?", replace(GREEDY, max_new_tokens=48)))
    assert answer.over == TIME and answer.tokens[1] < 10


def test_a_conversation_that_is_too_long_loses_its_beginning_and_says_so(models) -> None:
    session = Session(models[0])
    answers = [finished(session.ask(f"Who is number {i}?", GREEDY)) for i in range(4)]
    assert answers[0].note == "" and "left out" in answers[-1].note
    most = models[0].rows.max_tokens
    assert all(sum(each.tokens) <= most for each in answers)
    assert len(session.messages) == 8  # what people see stays


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("x" * 301, "301 characters; up to 300"),
        ("\N{PILE OF POO}" * 200, "too long for eim"),
        ("Who? \ud800", "half of a character"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused_in_words(models, text, reason) -> None:
    session = Session(models[0])
    with pytest.raises(Refused, match=reason):
        finished(session.ask(text, GREEDY))
    assert session.messages == []
    assert finished(session.ask("Who?", GREEDY)).text


def test_what_a_template_cannot_take_is_refused_with_its_reason(models) -> None:
    rows = models[0].rows
    tokenizer = copy.deepcopy(models[0].tokenizer)
    tokenizer.chat_template = CHATML.replace("<|im_end|>", tokenizer.eos_token)
    own = replace(rows, template=chat_template("tokenizer", tokenizer, [tokenizer.eos_token_id]))
    session = Session(replace(models[0], rows=own))
    with pytest.raises(Refused, match=r"eim cannot be asked this: control token .*start anew"):
        finished(session.ask(f"Who?{tokenizer.eos_token}", GREEDY))
    assert finished(session.ask("Who?", GREEDY)).text


def test_nothing_can_be_tried_again_before_something_was_asked(models) -> None:
    with pytest.raises(Refused, match="ask something first"):
        Session(models[0]).retry(GREEDY)


def test_the_adapters_are_folded(models) -> None:
    with torch.no_grad():
        for model in models:
            text, image = model.models
            assert text is not image and text._folded is False and image._folded is True


def test_one_image_at_a_time_is_made_ready(models) -> None:
    """Each takes many times the memory of its file, and anybody may send some."""
    at_once, most, own = [0], [0], models[0].transform

    def slow(image: Image.Image) -> torch.Tensor:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.05)
        at_once[0] -= 1
        return own(image)

    model = replace(models[0], transform=slow)
    with ThreadPoolExecutor(4) as users:
        assert len(list(users.map(model.picture, [PICTURE] * 4))) == 4
    assert most == [1]


def failing(*_: object) -> None:
    raise RuntimeError("CUDA out of memory, say")


@pytest.mark.parametrize("image", [None, PICTURE])
def test_after_a_pass_that_failed_half_way_answers_are_those_of_a_new_session(
    models, image
) -> None:
    first, second = ("Who?", "Why?")
    fresh, session = Session(models[0]), Session(models[0])
    for each in (fresh, session):
        each.show(image)
        finished(each.ask(first, GREEDY))
    expected = finished(fresh.ask(second, GREEDY)).text
    last = models[0].models[image is not None].llm.get_output_embeddings()
    hook = last.register_forward_pre_hook(failing)  # the keys of all blocks are there by then
    try:
        with pytest.raises(Refused, match="failed on this question"):
            finished(session.ask(second, GREEDY))
    finally:
        hook.remove()
    assert [each["content"] for each in session.messages][0::2] == [first]
    assert finished(session.retry(GREEDY)).text == expected
    assert finished(session.ask(first, GREEDY)).text == finished(fresh.ask(first, GREEDY)).text
