"""OpenAI's own client talks to the server, alone and in a crowd; what is wrong is said."""

import base64
import io
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

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
        ([ASK], {"stop": "x"}, "stop is not supported"),
        ([ASK], {"temperature": -1}, "temperature is -1"),
        ([ASK], {"model": "other"}, "no model 'other'"),
        ([ASK], {"stream": True, "top_p": 0}, "top_p is 0"),
    ):
        with pytest.raises(openai.APIStatusError, match=reason):
            client.chat.completions.create(**{"model": "eim", "messages": messages, **options})
    assert httpx.post(f"{url}/v1/chat/completions", content=b"{").status_code == 422
    assert said(client, ASK)  # and it goes on


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
