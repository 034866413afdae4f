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

from pipeline.chat.completions import Completion, shown
from pipeline.chat.desk import LENGTH, TICK, TIME, Answer
from pipeline.chat.failures import error_body
from pipeline.chat.limits import Refused
from pipeline.chat.model import ChatModel
from pipeline.chat.stops import Said, before_stops

_FINISH = {LENGTH: "length", TIME: "length"}  # all else: "stop"


def router(models: Sequence[ChatModel]) -> APIRouter:
    """The routes below /v1."""
    routes = APIRouter(prefix="/v1")
    named = {each.name: each for each in models}

    def find(name: str) -> ChatModel:
        if name not in named:
            raise Refused(
                f"There is no model '{shown(name)}' here; ask {' or '.join(named)}.",
                HTTPStatus.NOT_FOUND,
            )
        return named[name]

    @routes.get("/models")
    def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_about(each) for each in models]}

    @routes.get("/models/{name:path}")
    def retrieve_model(name: str) -> dict[str, Any]:
        return _about(find(name))

    @routes.post("/chat/completions")
    async def complete(asked: Completion, request: Request) -> Response:
        model = find(asked.model) if asked.model else models[0]
        # In a thread: an image takes its time, and others are served meanwhile.
        answer = model.put(await asyncio.to_thread(asked.asked, model))
        reply = _Reply(asked, model, answer)
        await reply.begun(request)
        if asked.stream:
            return StreamingResponse(reply.events(), media_type="text/event-stream")
        return JSONResponse(await reply.whole(request))

    return routes


def _about(model: ChatModel) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "owned_by": "eim", "created": 0}


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
        await self._until(request, lambda: self._said().stopped)
        self._answer.stop()
        said = {"role": "assistant", "content": self._said().text}
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
        """The answer as it grows, as server-sent events; one that fails ends with the error."""
        try:
            yield self._chunk([_delta({"role": "assistant", "content": ""})])
            async for grown in self._grown():
                yield self._chunk([_delta({"content": grown})])
        finally:
            self._answer.stop()
        try:
            self._answer.check()
        except Refused as refusal:
            yield _event(error_body(str(refusal), refusal.status))
            return
        yield self._chunk([_delta({}, self._finish())])
        if self._asked.stream_options and self._asked.stream_options.include_usage:
            yield self._chunk([], usage=self._usage())
        yield "data: [DONE]\n\n"

    async def _grown(self) -> AsyncIterator[str]:
        """What can be shown, piece by piece, until a stop or the end."""
        sent = 0
        while True:
            over = self._answer.over is not None  # before the text, which may grow until then
            said = self._said()
            if len(said.text) > sent:
                yield said.text[sent:]
                sent = len(said.text)
            if over or said.stopped:
                return
            await asyncio.sleep(TICK)

    def _said(self) -> Said:
        whole = self._answer.over is not None
        return before_stops(self._answer.text, self._asked.stop, whole=whole)

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> str:
        head = {**self._head, "object": "chat.completion.chunk"}
        return _event({**head, "choices": choices, **more})

    def _finish(self) -> str:
        return "stop" if self._said().stopped else _FINISH.get(self._answer.over or "", "stop")

    def _usage(self) -> dict[str, int]:
        asked, said = self._answer.tokens
        return {
            "prompt_tokens": asked,
            "completion_tokens": said,
            "total_tokens": asked + said,
        }


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _delta(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
