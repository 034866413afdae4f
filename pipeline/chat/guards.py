"""What turns requests away before a route, or the page, sees anything of them.

Assumes nothing about a request but what the server's protocol says.
"""

from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.chat.failures import error_body

_TOO_LARGE = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


def is_local(host: str) -> bool:
    """Whether an address or a name, without brackets or a port, means this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class LocalNames:
    """Refuses requests that call this machine otherwise than `is_local` knows.

    Any page that the user visits could else name itself like this machine and ask us. (Starlette
    has such a check, which takes no IPv6 address in all versions up to 1.4 at least.)
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] in ("http", "websocket") and not is_local(_host(scope)):
            message = "This server is asked as localhost or by its address alone."
            await _refuse(message, HTTPStatus.BAD_REQUEST, scope, receive, send)
            return
        await self._app(scope, receive, send)


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
            await _refuse(self._message, _TOO_LARGE, scope, receive, send)
            return
        left = self._limit

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:  # more came than was declared
                raise HTTPException(_TOO_LARGE, self._message)
            return message

        await self._app(scope, bounded, send)


def _host(scope: Scope) -> str:
    """Of the header Host, without its port; "" where there is none to be read."""
    try:
        return urlsplit(f"//{Headers(scope=scope).get('host', '')}").hostname or ""
    except ValueError:
        return ""


async def _refuse(
    message: str, status: HTTPStatus, scope: Scope, receive: Receive, send: Send
) -> None:
    await JSONResponse(error_body(message, status), status)(scope, receive, send)
