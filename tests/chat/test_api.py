"""OpenAI's own client talks to the server, alone and in a crowd; what is wrong is said."""

import base64
import io
import json
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import httpx
import openai
import pytest
from PIL import Image

from tests.chat.conftest import GREEDY, Pace
from tests.chat.small import PICTURE
from tests.chat.test_session import asked

ASK = {"role": "user", "content": "Who?"}


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def about(url: str, text: str = "Who?") -> dict[str, object]:
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    return {"role": "user", "content": parts}


def said(client: openai.OpenAI, *messages: object, model: str = "eim", **options: object) -> str:
    made = client.chat.completions.create(
        model=model, messages=messages, max_tokens=GREEDY.max_new_tokens, **options
    )
    return made.choices[0].message.content


def test_a_conversation_is_answered_as_in_a_session(client, models) -> None:
    assert [each.id for each in client.models.list()] == ["eim", "baseline"]
    for model in models:
        (expected,) = asked(model, "Who?")
        assert said(client, ASK, model=model.name) == expected
    drawn = [said(client, ASK, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    history = [ASK, {"role": "assistant", "content": "Me."}, {"role": "user", "content": "Why?"}]
    assert said(client, {"role": "system", "content": "Be kind."}, *history) != said(
        client, *history
    )


def test_an_answer_is_streamed_and_counted(client, pace: Pace) -> None:
    whole = said(client, ASK)
    pace.seconds = 0.1
    chunks = list(
        client.chat.completions.create(
            model="eim",
            messages=[ASK],
            max_tokens=GREEDY.max_new_tokens,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    texts = [each.choices[0].delta.content for each in chunks if each.choices]
    assert "".join(filter(None, texts)) == whole
    assert len(list(filter(None, texts))) > 3
    assert [each.choices[0].finish_reason for each in chunks if each.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == GREEDY.max_new_tokens


def test_an_image_is_seen(client) -> None:
    red = Image.new("RGB", (60, 40), "red")
    answers = {said(client, about(data_url(each))) for each in (PICTURE, red)} | {said(client, ASK)}
    assert len(answers) == 3


def test_what_cannot_be_is_said(client, url: str) -> None:
    red = data_url(Image.new("RGB", (60, 40), "red"))
    for messages, options, reason in (
        ([{"role": "user", "content": " "}], {}, "empty"),
        ([{"role": "user", "content": "x" * 4000}], {}, "up to 300 are read"),
        ([ASK, ASK], {}, "take turns"),
        ([ASK, {"role": "assistant", "content": "Me."}], {}, "must be the user's"),
        ([about("https://example.com/a.png")], {}, "must be a data URL"),
        ([about("data:image/png;base64,!!!")], {}, "no base64"),
        ([about(f"data:image/png;base64,{base64.b64encode(b'text').decode()}")], {}, "undecodable"),
        ([about(red), {"role": "assistant", "content": "Me."}, about(red)], {}, "2 images"),
        ([ASK], {"n": 2}, "n is not supported"),
        ([ASK], {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not"),
        ([ASK], {"logit_bias": {"5": -100}}, "logit_bias is not supported"),
        ([ASK], {"functions": [{"name": "f"}]}, "functions is not supported"),
        ([ASK], {"extra_body": {"top_k": 5}}, "top_k is not supported"),
        ([ASK], {"extra_body": {"repetition_penalty": 2}}, "repetition_penalty is not"),
        ([ASK], {"stop": ["a", "b", "c", "d", "e"]}, "stop: .*at most 4"),
        ([ASK], {"stop": ["a", ""]}, "stop.1: .*at least 1 character"),
        ([ASK], {"temperature": -1}, "temperature is -1"),
        ([ASK], {"model": "other"}, "no model 'other'"),
        ([ASK], {"stream": True, "top_p": 0}, "top_p is 0"),
    ):
        with pytest.raises(openai.APIStatusError, match=reason):
            client.chat.completions.create(**{"model": "eim", "messages": messages, **options})
    assert said(client, ASK)  # and it goes on


def test_what_changes_no_answer_is_taken(client) -> None:
    noted = {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"}
    as_here = {"n": 1, "logit_bias": {}, "presence_penalty": 0, "stop": None, "top_logprobs": None}
    assert said(client, ASK, **noted, **as_here) == said(client, ASK)


JSON = {"content-type": "application/json"}
LARGE = "x" * 300_000


@pytest.mark.parametrize(
    ("content", "headers", "param", "reason"),
    [
        (b"{", JSON, None, "no JSON: .*at character 1"),
        (b"[" * 100_000, JSON, None, "pars"),
        (b"[]", JSON, None, "must be a JSON object"),
        (b"", JSON, None, "must be a JSON object"),
        (b"\xff\xfe\x00", {}, None, "must be a JSON object"),
        (b'{"messages": "\xff"}', JSON, None, "pars"),
        ({"messages": []}, {}, "messages", "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, {}, "messages.0.role", "'assistant'"),
        ({"content": None}, {}, "messages.0.content", "a text or a list of parts"),
        ({"content": [LARGE]}, {}, "messages.0.content.0", "valid dictionary"),
        ({"content": {"a": LARGE}}, {}, "messages.0.content", "a text or a list of parts"),
        ({"content": [1] * 100_000}, {}, "messages.0.content.0", "valid dictionary"),
        ({"max_tokens": float("inf")}, {}, "max_tokens", "finite number"),
        ({"seed": float("nan")}, {}, "seed", "finite number"),
        ({"seed": 10**400}, {}, "seed", "less than"),
        ({"temperature": float("nan")}, {}, None, "temperature is nan"),
        ({LARGE: 1}, {}, None, "xxx is not supported"),
        (about("data:image/png;base64,\u00e9"), {}, None, "no base64"),
        (about(LARGE), {}, None, "must be a data URL"),
    ],
)
def test_a_clients_mistake_is_named_in_openais_form_and_not_sent_back(
    url: str, content: bytes | dict[str, object], headers: dict[str, str], param, reason: str
) -> None:
    if isinstance(content, dict):
        message = {"role": "user", "content": "Who?"}
        message |= {key: content.pop(key) for key in ("role", "content") if key in content}
        headers, content = JSON, json.dumps({"messages": [message], **content}).encode()
    with httpx.Client() as browser:
        found = browser.post(f"{url}/v1/chat/completions", content=content, headers=headers)
        error = found.json()["error"]
        assert (found.status_code, error["type"]) == (400, "invalid_request_error")
        assert error["param"] == param and re.search(reason, error["message"])
        assert len(found.content) < 500
        stream = found.extensions["network_stream"]
        again = browser.get(f"{url}/v1/models")  # over the same connection
        assert again.extensions["network_stream"] is stream


def test_a_model_is_found_by_its_name(client) -> None:
    assert client.models.retrieve("baseline").id == "baseline"
    with pytest.raises(openai.NotFoundError, match="no model 'other' here; ask eim or baseline"):
        client.models.retrieve("other")


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_fails_midway_is_an_error_and_no_answer(client, models, stream) -> None:
    passes = count(1)

    def fail(*_: object) -> None:
        time.sleep(0.1)  # so that what came before is on its way
        if next(passes) > 5:
            raise RuntimeError("out of memory")

    hook = models[0].models[0].llm.register_forward_pre_hook(fail)
    seen = []
    try:
        with pytest.raises(openai.APIError, match="The model failed on this question"):
            for each in client.chat.completions.create(model="eim", messages=[ASK], stream=stream):
                seen.append(each.choices[0])
    finally:
        hook.remove()
    assert bool("".join(each.delta.content or "" for each in seen)) == stream
    assert not any(each.finish_reason for each in seen)
    assert said(client, ASK)  # and it goes on


def test_an_answer_ends_before_the_first_stop(client, pace: Pace) -> None:
    whole = said(client, ASK)
    pace.seconds = 0.05  # tokens, and so parts of stops, come one by one
    middle = len(whole) // 2
    first, later, never = whole[middle : middle + 5], whole[middle + 3 : middle + 9], "\N{SNOWMAN}"
    ended = whole[: whole.index(first)]
    for stop in (first, [later, never, first]):
        made = client.chat.completions.create(
            model="eim", messages=[ASK], max_tokens=GREEDY.max_new_tokens, stop=stop
        )
        assert (made.choices[0].message.content, made.choices[0].finish_reason) == (ended, "stop")
        chunks = list(
            client.chat.completions.create(
                model="eim",
                messages=[ASK],
                max_tokens=GREEDY.max_new_tokens,
                stop=stop,
                stream=True,
            )
        )
        texts = [each.choices[0].delta.content or "" for each in chunks]
        assert "".join(texts) == ended and len(list(filter(None, texts))) > 1
        assert chunks[-1].choices[0].finish_reason == "stop"
    assert said(client, ASK, stop=never) == said(client, ASK, stop=[]) == whole


def test_a_stop_spares_the_rest_of_the_answer(client, pace: Pace) -> None:
    whole = said(client, ASK)
    pace.seconds = 0.1
    made = client.chat.completions.create(
        model="eim", messages=[ASK], max_tokens=48, stop=whole[:3]
    )
    assert made.choices[0].message.content == "" and made.usage.completion_tokens < 10


def test_too_large_a_request_is_refused_before_it_is_read(url: str, models) -> None:
    config = models[0].limits.config
    large = json.dumps({"messages": [ASK], "junk": "x" * 3 * config.max_image_bytes}).encode()
    kind = {"content-type": "application/json"}

    def in_pieces():
        yield from (large[i : i + 50_000] for i in range(0, len(large), 50_000))

    for content in (large, in_pieces()):
        try:
            found = httpx.post(f"{url}/v1/chat/completions", content=content, headers=kind)
        except httpx.TransportError:  # it hung up while we were still sending
            continue
        assert found.status_code == 413 and "too large" in found.text


def test_another_page_cannot_ask_in_the_visitors_name(url: str) -> None:
    assert httpx.get(f"{url}/v1/models", headers={"host": "evil.example"}).status_code == 400


def test_a_client_that_goes_away_stops_its_answer(client, models, pace: Pace) -> None:
    pace.seconds = 0.2
    with client.chat.completions.create(
        model="eim", messages=[ASK], max_tokens=48, stream=True
    ) as stream:
        for each in stream:
            if each.choices[0].delta.content:
                break
    stream.close()
    pace.seconds = 0.0
    (expected,) = asked(models[0], "Who?")  # would wait for ten seconds behind the other
    assert said(client, ASK) == expected


def test_a_crowd_gets_answers_or_a_clear_message_and_the_server_stays_up(
    client, models, pace: Pace
) -> None:
    alone = said(client, ASK)

    def one(_: int) -> str:
        try:
            return said(client, ASK)
        except openai.APIStatusError as error:
            return f"{error.status_code} {error.body['message']}"  # type: ignore[index]

    with ThreadPoolExecutor(10) as users:
        assert Counter(users.map(one, range(10))) == {alone: 10}
    pace.seconds = 0.05
    crowd = 2 * models[0].limits.config.waiting
    with ThreadPoolExecutor(crowd) as users:
        found = Counter(users.map(one, range(crowd)))
    pace.seconds = 0.0
    busy = "503 The model is busy: 16 questions wait already. Ask again in a moment."
    assert set(found) == {alone, busy} and found[alone] >= 17
    assert said(client, ASK) == alone
