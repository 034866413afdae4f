"""POST /v1/chat/completions as OpenAI's clients know it, with images as data URLs, streaming.

Every request brings its whole conversation; nothing is kept between them. A client that goes away
stops its answer.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from pipeline.chat.completions import Completion
from pipeline.chat.desk import LENGTH, TICK, TIME, Answer
from pipeline.chat.limits import Refused
from pipeline.chat.model import ChatModel

_FINISH = {LENGTH: "length", TIME: "length"}  # all else: "stop"


def router(models: Sequence[ChatModel]) -> APIRouter:
    """The routes below /v1."""
    routes = APIRouter(prefix="/v1")
    named = {each.name: each for each in models}

    @routes.get("/models")
    def list_models() -> dict[str, Any]:
        about = {"object": "model", "owned_by": "eim", "created": 0}
        listed = [{"id": name, **about} for name in named]
        return {"object": "list", "data": listed}

    @routes.post("/chat/completions")
    async def complete(asked: Completion, request: Request) -> Response:
        model = named.get(asked.model) if asked.model else models[0]
        if model is None:
            raise Refused(
                f"There is no model {asked.model!r} here; ask {' or '.join(named)}.",
                HTTPStatus.NOT_FOUND,
            )
        # In a thread: an image takes its time, and others are served meanwhile.
        answer = model.put(await asyncio.to_thread(asked.asked, model))
        reply = _Reply(asked, model, answer)
        await reply.begun(request)
        if asked.stream:
            return StreamingResponse(reply.events(), media_type="text/event-stream")
        return JSONResponse(await reply.whole(request))

    return routes


def refusal(request: Request, error: Exception) -> Response:
    """A `Refused` as OpenAI's clients expect an error."""
    assert isinstance(error, Refused)
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    body = {"message": str(error), "type": kind, "param": None, "code": None}
    return JSONResponse({"error": body}, error.status)


class _Reply:
    """An answer on its way to one client, who may go away."""

    def __init__(self, asked: Completion, model: ChatModel, answer: Answer) -> None:
        self._asked, self._answer = asked, answer
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model.name,
        }

    async def begun(self, request: Request) -> None:
        """Until there is text or the end: a refusal can still be an HTTP error until then."""
        await self._until(request, lambda: bool(self._answer.text))

    async def whole(self, request: Request) -> dict[str, Any]:
        """The answer in one piece."""
        await self._until(request, lambda: False)
        said = {"role": "assistant", "content": self._answer.text}
        choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": self._finish()}
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": self._usage(),
        }

    async def _until(self, request: Request, enough: Callable[[], bool]) -> None:
        """Until `enough` or the end of the answer, which a client that goes away stops.

        Raises Refused where there is no answer.
        """
        while self._answer.over is None and not enough():
            if await request.is_disconnected():
                self._answer.stop()
            await asyncio.sleep(TICK)
        self._answer.check()

    async def events(self) -> AsyncIterator[str]:
        """The answer as it grows, as server-sent events."""
        answer, sent = self._answer, 0
        yield self._chunk([_delta({"role": "assistant", "content": ""})])
        try:
            while True:
                over = answer.over
                if len(answer.text) > sent:
                    grown, sent = answer.text[sent:], len(answer.text)
                    yield self._chunk([_delta({"content": grown})])
                if over is not None:
                    break
                await asyncio.sleep(TICK)
        finally:
            answer.stop()
        yield self._chunk([_delta({}, self._finish())])
        if self._asked.stream_options and self._asked.stream_options.include_usage:
            yield self._chunk([], usage=self._usage())
        yield "data: [DONE]\n\n"

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> str:
        event = {**self._head, "object": "chat.completion.chunk", "choices": choices, **more}
        return f"data: {json.dumps(event)}\n\n"

    def _finish(self) -> str:
        return _FINISH.get(self._answer.over or "", "stop")

    def _usage(self) -> dict[str, int]:
        asked, said = self._answer.tokens
        return {
            "prompt_tokens": asked,
            "completion_tokens": said,
            "total_tokens": asked + said,
        }


def _delta(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
