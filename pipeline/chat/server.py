"""One HTTP server for people and programs: the page at /, OpenAI's routes at /v1.

Built of FastAPI, uvicorn and Gradio. It listens on this machine alone unless told otherwise, takes
no more of a request than an image and its question need, and goes on whatever one request does.
"""

import errno
import logging
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from pipeline.chat.api import router
from pipeline.chat.failures import add_handlers
from pipeline.chat.guards import BoundedBody, LocalNames, is_local
from pipeline.chat.model import ChatModel
from pipeline.chat.page import mount_page
from pipeline.config import ChatConfig
from pipeline.errors import ConfigError
from pipeline.presence import Presence

log = logging.getLogger("pipeline")

_CONNECTIONS = 256  # at once; a browser holds up to six
_LOOK_EVERY = 0.5  # seconds, for a wish to stop
_FAREWELL_SECONDS = 3  # for answers under way when the server stops
_NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # an address that this machine has not


def build_app(models: Sequence[ChatModel], config: ChatConfig) -> FastAPI:
    """The whole server's application."""
    app = FastAPI(title="EIM chat", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router(models))
    add_handlers(app)
    mount_page(app, models, config)
    # Base64 makes four characters of three bytes; a character of a text takes up to 12 as JSON.
    body = 2 * config.max_image_bytes + 12 * 11 * config.max_characters
    app.add_middleware(BoundedBody, limit=body)
    if is_local(config.host):
        app.add_middleware(LocalNames)
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
        bound = server.config.bind_socket()
    except (SystemExit, OSError, OverflowError, UnicodeError) as error:
        # uvicorn exits where the system refuses; why stands in the exit's context.
        raise _cannot_listen(config, error.__context__ or error) from error
    # Not in the main thread: uvicorn would take over the signals, which the run's watch has.
    thread = threading.Thread(target=server.run, args=([bound],), name="server", daemon=True)
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
        where = f"http://{_in_url(config.host)}:{config.port}"
        log.info("chat          %s (page), /v1 (OpenAI's API)", where)
        if not is_local(config.host):
            log.warning("chat          anybody who reaches this machine can ask; no password")
        pause = threading.Event()
        while presence.stop_asked() is None:
            presence.beat()
            pause.wait(_LOOK_EVERY)


def _in_url(host: str) -> str:
    """As it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def _cannot_listen(config: ChatConfig, why: BaseException) -> ConfigError:
    reason = why.strerror if isinstance(why, OSError) else why
    not_ours = isinstance(why, OSError) and why.errno in _NOT_OURS
    if not_ours or isinstance(why, socket.gaierror | UnicodeError):
        return ConfigError(
            f"chat.host={config.host}: the server cannot listen there ({reason}); name an address "
            "of this machine, as host=127.0.0.1"
        )
    return ConfigError(
        f"chat.port={config.port}: the server cannot listen on {config.host} there ({reason}); "
        "name another port="
    )
