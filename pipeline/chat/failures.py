"""What went wrong, as OpenAI's clients expect an error.

Says where a request is wrong and how, and sends nothing of it back: that may be megabytes, or no
text at all. Knows nothing of models.
"""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from pipeline.chat.limits import Refused

_UNEXPECTED = "The server failed on this request; its log says why."


def add_handlers(app: FastAPI) -> None:
    """Has whatever goes wrong in the routes of `app` answered in OpenAI's form."""
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def error_body(message: str, status: int, param: str | None = None) -> dict[str, Any]:
    """The body of an error.

    Args:
        message: for the person or program that asked.
        status: HTTP's; from 500 on it is the server's fault.
        param: the field that is wrong, by its path from the request's top.
    """
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


def _answer(message: str, status: int, param: str | None = None) -> Response:
    return JSONResponse(error_body(message, status, param), status)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _answer(str(error), error.status)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    _, *path = first["loc"]  # behind "body"
    param = None
    if first["type"] == "json_invalid":
        message = f"The request is no JSON: {first['ctx']['error']}, at character {path[0]}."
    elif path:
        param = ".".join(map(str, path))
        message = f"{param}: {first['msg']}"
    else:
        message = "The request must be a JSON object, sent as application/json."
    return _answer(message, HTTPStatus.BAD_REQUEST, param)


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(str(error.detail), error.status_code)


def _unexpected(request: Request, error: Exception) -> Response:
    return _answer(_UNEXPECTED, HTTPStatus.INTERNAL_SERVER_ERROR)
