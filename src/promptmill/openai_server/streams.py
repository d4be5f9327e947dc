"""Streamed replies: their events, and the connection that carries them.

The backend shows the growing answer. A stream has its pieces as they come: reasoning, text, tool calls. All else, such
as the usage, comes at its end. An error before the first piece has its own status. If a repeated request differs from
the pieces that were sent, its stream ends with an error.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from promptmill.backends.protocol import Completion, Growing
from promptmill.core.values import JsonDict, JsonObject
from promptmill.openai_server import response_bodies
from promptmill.openai_server.api_errors import ApiError
from promptmill.openai_server.bodies import choices_of, reasoning_fields, tool_call, usage_of
from promptmill.openai_server.response_tools import item_of

T = TypeVar("T")
_PING_S = 3.0  # as over MCP: some clients disconnect after five seconds of silence
_OTHER_ANSWER = (
    "What was sent is not the beginning of the answer: the request was repeated meanwhile, or the text was reasoning "
    "without a mark at its beginning. Send the request without `stream`."
)
_PING = b": ping\n\n"
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies such as nginx hold events back


class Events(ABC):
    """The events of one API's stream, each as its bytes, and the part of the answer that they have so far."""

    def __init__(self) -> None:
        self._sent = Growing()

    def grow(self, now: Growing, *, is_whole: bool = False) -> Iterator[bytes]:
        """Yield the events for the part of `now` that has no events yet: reasoning, then text, then tool calls.

        Yields nothing for an answer that does not begin as the events do, which may belong to another attempt; for a
        whole one, raises `ApiError`. The name of a tool call is complete when its arguments begin.
        """
        sent, calls = self._sent, list(map(tool_call, now.tool_calls))
        while calls and not is_whole and not calls[-1]["function"]["arguments"]:
            calls.pop()
        reasoning, text = _rest(now.reasoning, sent.reasoning), _rest(now.text, sent.text)
        pieces = [_rest_of_call(*pair) for pair in zip(calls, sent.tool_calls, strict=False)]
        if None in {reasoning, text, *pieces} or len(calls) < len(sent.tool_calls):
            if is_whole:
                raise ApiError(500, _OTHER_ANSWER)
            return
        self._sent = Growing(now.text, now.reasoning, calls)
        if reasoning:
            yield self.reasoning(reasoning)
        if text:
            yield self.text(text)
        for place, call in enumerate(calls):
            function = call["function"]
            if place == len(pieces):
                pieces.append(function["arguments"])
                yield self.call({"index": place, **call, "function": {**function, "arguments": ""}})
            if piece := pieces[place]:
                yield self.arguments(place, piece)

    @abstractmethod
    def begin(self) -> Iterator[bytes]:
        """Yield the events before the answer."""

    @abstractmethod
    def reasoning(self, piece: str) -> bytes:
        """Return the event with a piece of the reasoning."""

    @abstractmethod
    def text(self, piece: str) -> bytes:
        """Return the event with a piece of the text."""

    @abstractmethod
    def call(self, call: JsonDict) -> bytes:
        """Return the event with the beginning of a tool call: its `index`, id and name."""

    @abstractmethod
    def arguments(self, place: int, piece: str) -> bytes:
        """Return the event with a piece of the arguments of the tool call with the index `place`."""

    @abstractmethod
    def end(self, answer: Completion) -> Iterator[bytes]:
        """Yield the last events, with the part of the answer that has none yet. Raises `ApiError` as `grow` does."""

    @abstractmethod
    def error(self, error: ApiError) -> bytes:
        """Return the last event of a stream that fails."""


def _rest(whole: str, sent: str) -> str | None:
    """Return the part of `whole` after `sent`; None if it begins otherwise. White space around a text is nothing."""
    if not sent:
        return whole
    whole, sent = whole.lstrip(), sent.lstrip()
    if whole.startswith(sent):
        return whole[len(sent) :]
    return "" if whole == sent.rstrip() else None


def _rest_of_call(call: JsonObject, sent: JsonObject) -> str | None:
    function, begun = call["function"], sent["function"]
    return _rest(function["arguments"], begun["arguments"]) if function["name"] == begun["name"] else None


class ChatEvents(Events):
    """The chunks of a chat completion."""

    def __init__(self, body: JsonObject, model: str, n: int) -> None:
        """`n` is the number of answers."""
        super().__init__()
        options = body.get("stream_options")
        self._with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        identity = f"chatcmpl-{secrets.token_hex(14)}"
        self._head = {"id": identity, "object": "chat.completion.chunk", "created": int(time.time()), "model": model}
        self._n, self._index = n, 0
        self._logprobs: JsonObject | None = None

    def _chunk(self, delta: JsonDict, reason: str | None = None, logprobs: object = None) -> bytes:
        choice = {"index": self._index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        usage = {"usage": None} if self._with_usage else {}
        return _event({**self._head, "choices": [choice], **usage})

    def begin(self) -> Iterator[bytes]:
        for index in range(self._n):
            self._index = index
            yield self._chunk({"role": "assistant", "content": ""})
        self._index = 0

    def reasoning(self, piece: str) -> bytes:
        return self._chunk(reasoning_fields(piece))

    def text(self, piece: str) -> bytes:
        return self._chunk({"content": piece}, None, self._logprobs)

    def call(self, call: JsonDict) -> bytes:
        return self._chunk({"tool_calls": [call]})

    def arguments(self, place: int, piece: str) -> bytes:
        return self._chunk({"tool_calls": [{"index": place, "function": {"arguments": piece}}]})

    def end(self, answer: Completion) -> Iterator[bytes]:
        for self._index, choice in enumerate(choices_of(answer)):
            if self._index:
                self._sent = Growing()
            self._logprobs = choice.logprobs
            yield from self.grow(choice.whole, is_whole=True)
            yield self._chunk({}, choice.finish_reason)
        if self._with_usage:
            yield _event({**self._head, "choices": [], "usage": usage_of(answer.usage)})
        yield b"data: [DONE]\n\n"

    def error(self, error: ApiError) -> bytes:
        return _event(error.body())


class ResponseEvents(Events):
    """The events of a response. Reasoning and text are items of its output in the order in which they come."""

    def __init__(self, body: JsonObject, model: str, _n: int) -> None:
        super().__init__()
        self._body, self._response = body, response_bodies.head(body, model, "in_progress")
        self._number = -1
        self._output: list[JsonDict] = []
        self._open = ""
        """The type of the last item, while its text grows."""
        self._calls: list[tuple[int, JsonDict]] = []
        """The tool calls with their places in the output; they end with the response."""
        self._logprobs: list[Any] = []

    def _event(self, kind: str, **fields: object) -> bytes:
        self._number += 1
        named = f"response.{kind}" if kind != "error" else kind
        return b"event: %b\n" % named.encode() + _event({"type": named, "sequence_number": self._number, **fields})

    def _add(self, item: JsonDict, **empty: object) -> bytes:
        """Return the events that end the open item, and begin another one, `empty` as yet."""
        ended = self._end_text()
        self._output.append(item)
        return ended + self._event("output_item.added", output_index=len(self._output) - 1, item={**item, **empty})

    def _of_item(self, kind: str, place: int, **fields: object) -> bytes:
        return self._event(kind, item_id=self._output[place]["id"], output_index=place, **fields)

    def _end(self, place: int) -> bytes:
        item = self._output[place]
        item["status"] = "completed"
        return self._event("output_item.done", output_index=place, item=item)

    def _of_text(self, kind: str, **fields: object) -> bytes:
        return self._of_item(kind, len(self._output) - 1, content_index=0, **fields)

    def _add_text(self, kind: str, piece: str) -> bytes:
        begun = b""
        if self._open != kind:
            item = response_bodies.text_item(kind, "", status="in_progress")
            begun = self._add(item, content=[]) + self._of_text("content_part.added", part=item["content"][0])
            self._open = kind
        part = self._output[-1]["content"][0]
        part["text"] += piece
        return begun + self._of_text(f"{part['type']}.delta", delta=piece, logprobs=[])

    def _end_text(self) -> bytes:
        if not self._open:
            return b""
        self._open, part = "", self._output[-1]["content"][0]
        if "logprobs" in part:
            part["logprobs"] = self._logprobs
        done = self._of_text(f"{part['type']}.done", text=part["text"], logprobs=part.get("logprobs", []))
        return done + self._of_text("content_part.done", part=part) + self._end(len(self._output) - 1)

    def begin(self) -> Iterator[bytes]:
        yield self._event("created", response=self._response)
        yield self._event("in_progress", response=self._response)

    def reasoning(self, piece: str) -> bytes:
        return self._add_text("reasoning", piece)

    def text(self, piece: str) -> bytes:
        return self._add_text("message", piece)

    def call(self, call: JsonDict) -> bytes:
        begun = self._add(item_of(call, self._body) | {"status": "in_progress"})
        self._calls.append((len(self._output) - 1, call))
        return begun

    def arguments(self, place: int, piece: str) -> bytes:
        at, call = self._calls[place]
        call["function"]["arguments"] += piece
        if self._output[at]["type"] != "function_call":
            return b""  # JSON of ours, around what the client gets
        return self._of_item("function_call_arguments.delta", at, delta=piece)

    def end(self, answer: Completion) -> Iterator[bytes]:
        (choice, *_) = choices_of(answer)
        self._logprobs = list((choice.logprobs or {}).get("content") or ())
        yield from self.grow(choice.whole, is_whole=True)
        yield self._end_text()
        for at, call in self._calls:
            item = self._output[at]
            item |= item_of(call, self._body) | {"id": item["id"]}
            if item["type"] == "function_call":
                yield self._of_item("function_call_arguments.done", at, name=item["name"], arguments=item["arguments"])
            elif item["type"] == "custom_tool_call":
                yield self._of_item("custom_tool_call_input.delta", at, delta=item["input"])
                yield self._of_item("custom_tool_call_input.done", at, input=item["input"])
            yield self._end(at)
        response = response_bodies.finished(self._response, choice, self._output, usage_of(answer.usage))
        yield self._event(response["status"], response=response)

    def error(self, error: ApiError) -> bytes:
        return self._event("error", code=error.code, message=error.message, param=error.param, **error.body())


def _event(data: JsonObject) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


Show = Callable[[Growing], None]


class EventStream(Response):
    """The reply that sends events while an answer grows; when its client disconnects, the answer is cancelled."""

    def __init__(self, events: Events, answer: Callable[[Show], Coroutine[Any, Any, Completion]]) -> None:
        """`answer` gets a function for the answer so far, and raises `ApiError`."""
        super().__init__(headers=_HEADERS, media_type="text/event-stream")
        del self.headers["content-length"]
        self._events, self._answer = events, answer
        self._growing, self._grown = Growing(), asyncio.Event()
        self._first, self._begun = b"".join(events.begin()), False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; an error before the first of them is a reply of its own."""
        error = await unless_left(receive, self._stream(send))
        if error is not None and not self._begun:
            await error.response()(scope, receive, send)
            return
        last = b"" if error is None else self._events.error(error)
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _stream(self, send: Send) -> ApiError | None:
        """Send all events but an error, which is returned."""
        answering = asyncio.ensure_future(self._answer(self._show))
        answering.add_done_callback(lambda _: self._grown.set())
        try:
            while not answering.done():
                self._grown.clear()
                try:
                    async with asyncio.timeout(_PING_S):
                        await self._grown.wait()
                    data = b"".join(self._events.grow(self._growing))
                except TimeoutError:
                    data = _PING
                await self._send(send, data)
            await self._send(send, b"".join(self._events.end(answering.result())))
        except ApiError as error:
            return error
        finally:
            answering.cancel()
        return None

    def _show(self, growing: Growing) -> None:
        self._growing = growing
        self._grown.set()

    async def _send(self, send: Send, data: bytes) -> None:
        if data and not self._begun:
            self._begun = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            data = self._first + data
        if data:
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
