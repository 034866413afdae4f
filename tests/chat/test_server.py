"""Where the server listens: under any name of this machine, and what is wrong is named."""

import asyncio
import socket
import time
from collections.abc import Sequence
from dataclasses import replace

import httpx
import pytest

from pipeline.chat.model import ChatModel
from pipeline.chat.server import build_app, serving
from pipeline.config import ChatConfig
from pipeline.errors import ConfigError

ASK = {"messages": [{"role": "user", "content": "Who?"}]}


def free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.bind((host, 0))
        return free.getsockname()[1]


def listening(models: Sequence[ChatModel], **settings: object):
    """A server of no model; those of the other tests' server would end with it."""
    config: ChatConfig = replace(models[0].limits.config, **settings)
    return serving([], config)


@pytest.mark.parametrize(
    ("host", "in_url"), [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost"), ("::1", "[::1]")]
)
def test_it_answers_under_the_names_of_this_machine_alone(models, host: str, in_url: str) -> None:
    port = free_port(host)
    with listening(models, host=host, port=port) as server:
        while not server.started:
            time.sleep(0.05)
        assert "gradio" in httpx.get(f"http://{in_url}:{port}/").text  # the page
        url = f"http://{in_url}:{port}/v1/models"
        for name in (in_url, "localhost", "LOCALHOST", "127.0.0.1", "[::1]"):
            assert httpx.get(url, headers={"host": f"{name}:{port}"}).status_code == 200
        for name in ("evil.example", "[::2]", "10.0.0.1", "localhost.evil.example", "[", ""):
            found = httpx.get(url, headers={"host": f"{name}:{port}"})
            assert found.status_code == 400
            assert "as localhost" in found.json()["error"]["message"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"host": "999.1.1.1"}, r"chat.host=999.1.1.1: .*\(Name or service not known\); .*host="),
        ({"host": "192.0.2.1"}, r"chat.host=192.0.2.1: .*\(Cannot assign .*host=127.0.0.1"),
        ({"port": 70_000}, r"chat.port=70000: .*0-65535.*; name another port="),
    ],
)
def test_where_it_cannot_listen_is_named(models, settings, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason), listening(models, **settings):
        pass


def test_a_port_that_is_taken_is_named(models) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        reason = rf"chat.port={port}: .*127.0.0.1 there \(Address already in use\); .*port="
        with pytest.raises(ConfigError, match=reason), listening(models, port=port):
            pass


def test_a_fault_of_the_servers_own_is_an_error_in_openais_form(models, monkeypatch) -> None:
    app = build_app(models, models[0].limits.config)
    monkeypatch.setattr(ChatModel, "put", lambda *_: [][0])

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/chat/completions", json=ASK)

    found = asyncio.run(ask())
    assert found.status_code == 500 and found.json()["error"]["type"] == "server_error"
