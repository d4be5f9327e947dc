"""Streamed replies: their events, and the connection that carries them.

The backend shows the text of a growing answer, and its outcome has everything else. So a stream has the pieces of the
text as they come, then the reasoning, tool calls and usage. An error before the first piece has its own status. A
repeated request whose text differs from the pieces ends its stream with an error.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from promptmill.backends.protocol import Completion
from promptmill.core.values import JsonDict, JsonObject
from promptmill.openai_server import response_bodies
from promptmill.openai_server.api_errors import ApiError
from promptmill.openai_server.bodies import choices_of, reasoning_fields, tool_call, usage_of
from promptmill.openai_server.response_tools import new_id

T = TypeVar("T")
_PING_S = 3.0  # as over MCP: some clients disconnect after five seconds of silence
_OTHER_TEXT = (
    "The text that was sent is not the beginning of the answer: the request was repeated meanwhile, or the text was "
    "reasoning without a mark at its beginning. Send the request without `stream`."
)
_PING = b": ping\n\n"
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies such as nginx hold events back


class Events(Protocol):
    """The events of one API's stream, each as its bytes."""

    def begin(self) -> Iterator[bytes]:
        """Yield the events before the first piece of text."""
        ...

    def text(self, piece: str) -> bytes:
        """Return the event with a piece of the text."""
        ...

    def end(self, answer: Completion, rest: str) -> Iterator[bytes]:
        """Yield the last events; `rest` is the text that was not sent."""
        ...

    def error(self, error: ApiError) -> bytes:
        """Return the last event of a stream that fails."""
        ...


class ChatEvents:
    """The chunks of a chat completion."""

    def __init__(self, body: JsonObject, model: str, n: int) -> None:
        """`n` is the number of answers."""
        options = body.get("stream_options")
        self._with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        identity = f"chatcmpl-{secrets.token_hex(14)}"
        self._head = {"id": identity, "object": "chat.completion.chunk", "created": int(time.time()), "model": model}
        self._n = n

    def _chunk(self, index: int, delta: JsonDict, reason: str | None = None, logprobs: object = None) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        usage = {"usage": None} if self._with_usage else {}
        return _event({**self._head, "choices": [choice], **usage})

    def begin(self) -> Iterator[bytes]:
        for index in range(self._n):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def text(self, piece: str) -> bytes:
        return self._chunk(0, {"content": piece})

    def end(self, answer: Completion, rest: str) -> Iterator[bytes]:
        for index, choice in enumerate(choices_of(answer)):
            if choice.reasoning:
                yield self._chunk(index, reasoning_fields(choice.reasoning))
            if text := choice.text if self._n > 1 else rest:
                yield self._chunk(index, {"content": text}, None, choice.logprobs)
            for place, call in enumerate(map(tool_call, choice.tool_calls)):
                function = call["function"]
                begun = {"index": place, **call, "function": {**function, "arguments": ""}}
                yield self._chunk(index, {"tool_calls": [begun]})
                piece = {"index": place, "function": {"arguments": function["arguments"]}}
                yield self._chunk(index, {"tool_calls": [piece]})
            yield self._chunk(index, {}, choice.finish_reason)
        if self._with_usage:
            yield _event({**self._head, "choices": [], "usage": usage_of(answer.usage)})
        yield b"data: [DONE]\n\n"

    def error(self, error: ApiError) -> bytes:
        return _event(error.body())


class ResponseEvents:
    """The events of a response. Its message is the first item of its output."""

    def __init__(self, body: JsonObject, model: str, _n: int) -> None:
        self._body, self._response = body, response_bodies.head(body, model, "in_progress")
        self._number = -1
        self._text = ""
        self._item = new_id("msg")

    def _event(self, kind: str, **fields: object) -> bytes:
        self._number += 1
        return b"event: %b\n" % kind.encode() + _event({"type": kind, "sequence_number": self._number, **fields})

    def _of_text(self, kind: str, **fields: object) -> bytes:
        return self._event(f"response.{kind}", item_id=self._item, output_index=0, content_index=0, **fields)

    def begin(self) -> Iterator[bytes]:
        yield self._event("response.created", response=self._response)
        yield self._event("response.in_progress", response=self._response)

    def text(self, piece: str) -> bytes:
        begun = b""
        if not self._text:
            item = response_bodies.message_item(self._item, [], "in_progress")
            begun = self._event("response.output_item.added", output_index=0, item=item)
            begun += self._of_text("content_part.added", part=response_bodies.text_part(""))
        self._text += piece
        return begun + self._of_text("output_text.delta", delta=piece, logprobs=[])

    def end(self, answer: Completion, rest: str) -> Iterator[bytes]:
        (choice, *_) = choices_of(answer)
        output = []
        if rest:
            yield self.text(rest)
        if self._text:
            part = response_bodies.text_part(self._text, (choice.logprobs or {}).get("content") or ())
            output.append(response_bodies.message_item(self._item, [part]))
            yield self._of_text("output_text.done", text=self._text, logprobs=part["logprobs"])
            yield self._of_text("content_part.done", part=part)
            yield self._event("response.output_item.done", output_index=0, item=output[0])
        for item in response_bodies.calls_of(choice, self._body):
            place = len(output)
            output.append(item)
            yield self._event("response.output_item.added", output_index=place, item=item | {"status": "in_progress"})
            about = {"item_id": item["id"], "output_index": place}
            if item["type"] == "function_call":
                yield self._event("response.function_call_arguments.delta", **about, delta=item["arguments"])
                whole = {"name": item["name"], "arguments": item["arguments"]}
                yield self._event("response.function_call_arguments.done", **about, **whole)
            elif item["type"] == "custom_tool_call":
                yield self._event("response.custom_tool_call_input.delta", **about, delta=item["input"])
                yield self._event("response.custom_tool_call_input.done", **about, input=item["input"])
            yield self._event("response.output_item.done", output_index=place, item=item)
        response = response_bodies.finished(self._response, choice, output, usage_of(answer.usage))
        yield self._event(f"response.{response['status']}", response=response)

    def error(self, error: ApiError) -> bytes:
        return self._event("error", code=error.code, message=error.message, param=error.param, **error.body())


def _event(data: JsonObject) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


Show = Callable[[str], None]


class EventStream(Response):
    """The reply that sends events while an answer grows; when its client disconnects, the answer is cancelled."""

    def __init__(self, events: Events, answer: Callable[[Show], Coroutine[Any, Any, Completion]]) -> None:
        """`answer` gets a function for the text so far, and raises `ApiError`."""
        super().__init__(headers=_HEADERS, media_type="text/event-stream")
        del self.headers["content-length"]
        self._events, self._answer = events, answer
        self._grown = asyncio.Event()
        self._text = self._sent = ""
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; an error before the first of them is a reply of its own."""
        error = await unless_left(receive, self._stream(send))
        if error is not None and not self._begun:
            await error.response()(scope, receive, send)
            return
        await _send_part(send, b"" if error is None else self._events.error(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _stream(self, send: Send) -> ApiError | None:
        """Send all events but an error, which is returned."""
        answering = asyncio.ensure_future(self._answer(self._show))
        answering.add_done_callback(lambda _: self._grown.set())
        try:
            await self._send_pieces(answering, send)
            answer = answering.result()
            if not answer.text.startswith(self._sent) and answer.text.strip() != self._sent.strip():
                return ApiError(500, _OTHER_TEXT)
            await self._begin(send)
            await _send_part(send, b"".join(self._events.end(answer, answer.text[len(self._sent) :])))
        except ApiError as error:
            return error
        finally:
            answering.cancel()
        return None

    def _show(self, text: str) -> None:
        self._text = text
        self._grown.set()

    async def _begin(self, send: Send) -> None:
        if not self._begun:
            self._begun = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _send_part(send, b"".join(self._events.begin()))

    async def _send_pieces(self, answering: asyncio.Future[Completion], send: Send) -> None:
        while not answering.done():
            self._grown.clear()
            try:
                async with asyncio.timeout(_PING_S):
                    await self._grown.wait()
            except TimeoutError:
                await self._begin(send)
                await _send_part(send, _PING)
            text = self._text
            if len(text) > len(self._sent) and text.startswith(self._sent):
                await self._begin(send)
                await _send_part(send, self._events.text(text[len(self._sent) :]))
                self._sent = text


async def _send_part(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def unless_left(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`. When the client disconnects, it is cancelled: raises `ConnectionError`."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ConnectionError
        return working.result()
    finally:
        leaving.cancel()
        if working.cancel():
            await asyncio.wait({working})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
