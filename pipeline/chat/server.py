"""One HTTP server for people and programs: the page at /, OpenAI's routes at /v1.

Built of FastAPI, uvicorn and Gradio. It listens on this machine alone unless told otherwise, takes
no more of a request than an image and its question need, and goes on whatever one request does.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from ipaddress import ip_address

import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.chat.api import router
from pipeline.chat.failures import add_handlers
from pipeline.chat.model import ChatModel
from pipeline.chat.page import mount_page
from pipeline.config import ChatConfig
from pipeline.errors import ConfigError
from pipeline.presence import Presence

log = logging.getLogger("pipeline")

_CONNECTIONS = 256  # at once; a browser holds up to six
_LOOK_EVERY = 0.5  # seconds, for a wish to stop
_FAREWELL_SECONDS = 3  # for answers under way when the server stops


class BoundedBody:
    """Refuses requests that are larger than `limit` bytes, before all of it is in memory."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit
        self._message = f"The request is too large: up to {limit} bytes are taken."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._limit:
            await self._refuse(scope, receive, send)
            return
        left = self._limit

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:  # more came than was declared
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._message)
            return message

        await self._app(scope, bounded, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = {"error": {"message": self._message, "type": "invalid_request_error"}}
        answer = JSONResponse(body, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        await answer(scope, receive, send)


def build_app(models: Sequence[ChatModel], config: ChatConfig) -> FastAPI:
    """The whole server's application."""
    app = FastAPI(title="EIM chat", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router(models))
    add_handlers(app)
    mount_page(app, models, config)
    # Base64 makes four characters of three bytes; a character of a text takes up to 12 as JSON.
    body = 2 * config.max_image_bytes + 12 * 11 * config.max_characters
    app.add_middleware(BoundedBody, limit=body)
    if _is_local(config.host):
        # Else any page that the user visits could name itself like this machine and ask us.
        app.add_middleware(
            TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "::1", config.host]
        )
    return app


@contextmanager
def serving(models: Sequence[ChatModel], config: ChatConfig) -> Iterator[uvicorn.Server]:
    """Inside, the server runs in a thread of its own; it stops at the end, or when that is set.

    Raises:
        ConfigError: it cannot listen there.
    """
    server = uvicorn.Server(
        uvicorn.Config(
            build_app(models, config),
            host=config.host,
            port=config.port,
            log_level="warning",
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=_FAREWELL_SECONDS,
        )
    )
    try:
        socket = server.config.bind_socket()
    except SystemExit as error:  # uvicorn's way to say that the port is taken
        raise ConfigError(
            f"chat.port={config.port}: the server cannot listen on {config.host} there; "
            "name another port="
        ) from error
    # Not in the main thread: uvicorn would take over the signals, which the run's watch has.
    thread = threading.Thread(target=server.run, args=([socket],), name="server", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()
        for each in models:
            each.desk.close()


def serve(models: Sequence[ChatModel], config: ChatConfig, presence: Presence) -> None:
    """Serves until a stop is asked for; raises what `serving` does."""
    with serving(models, config):
        log.info("chat          http://%s:%d (page), /v1 (OpenAI's API)", config.host, config.port)
        if not _is_local(config.host):
            log.warning("chat          anybody who reaches this machine can ask; no password")
        pause = threading.Event()
        while presence.stop_asked() is None:
            presence.beat()
            pause.wait(_LOOK_EVERY)


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
