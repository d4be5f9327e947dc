"""Streamed replies: their events, and the HTTP response that sends them.

The backend shows the growing answer, and a stream sends the answer's pieces as they arrive: reasoning, text, tool
calls. All other data, such as the usage, is sent at the end. An error before the first piece is sent with an error
status. If a retried request gives an answer that differs from the pieces already sent, the stream ends with an error.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from promptmill.backends.protocol import Completion, Growing
from promptmill.core.values import JsonDict, JsonObject
from promptmill.features.openai_server import response_bodies
from promptmill.features.openai_server.api_errors import ApiError
from promptmill.features.openai_server.choices import (
    choices_of,
    note_on,
    probabilities_of,
    reasoning_fields,
    tool_call,
    usage_of,
)
from promptmill.features.openai_server.response_tools import item_of

T = TypeVar("T")
_PING_S = 3.0  # seconds between pings, as over MCP: some clients disconnect after five seconds of silence
_OTHER_ANSWER = (
    "The sent part is not the beginning of the answer: the request was repeated meanwhile, the text was reasoning "
    "without a mark at its beginning, or a step changed the text. Send the request without `stream`."
)
_PING = b": ping\n\n"
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # nginx and other proxies would buffer events


class _Growth:
    """Tracks the part of an answer that was sent."""

    def __init__(self) -> None:
        self._sent = Growing()

    def deltas(self, now: Growing, *, is_whole: bool = False) -> Iterator[JsonDict]:
        """Yield the unsent part of `now` as deltas of chat completions: reasoning, text and tool calls.

        If the answer contradicts the sent pieces, it may belong to another attempt: yield nothing or, if it is
        complete, raise `ApiError`. A tool call waits until its arguments begin, as only then is its name complete.
        """
        sent, calls = self._sent, list(map(tool_call, now.tool_calls))
        while calls and not is_whole and not calls[-1]["function"]["arguments"]:
            calls.pop()
        reasoning, text = _rest(now.reasoning, sent.reasoning), _rest(now.text, sent.text)
        pieces = [_rest_of_call(*both) for both in zip(calls, sent.tool_calls, strict=False)]
        if None in (reasoning, text, *pieces) or len(calls) < len(sent.tool_calls):
            if is_whole:
                raise ApiError(500, _OTHER_ANSWER)
            return
        self._sent = Growing(now.text, now.reasoning, calls)
        if reasoning:
            yield reasoning_fields(reasoning)
        if text:
            yield {"content": text}
        for place, call in enumerate(calls):
            function = call["function"]
            if place == len(pieces):
                pieces.append(function["arguments"])
                yield {"tool_calls": [{"index": place, **call, "function": {**function, "arguments": ""}}]}
            if pieces[place]:
                yield {"tool_calls": [{"index": place, "function": {"arguments": pieces[place]}}]}


def _rest(whole: str, sent: str) -> str | None:
    """Return the part of `whole` after `sent`; None if `sent` is no prefix. White space around texts is ignored."""
    if not sent:
        return whole
    whole, sent = whole.lstrip(), sent.lstrip()
    if whole.startswith(sent):
        return whole[len(sent) :]
    return "" if whole == sent.rstrip() else None


def _rest_of_call(call: JsonObject, sent: JsonObject) -> str | None:
    function, begun = call["function"], sent["function"]
    return _rest(function["arguments"], begun["arguments"]) if function["name"] == begun["name"] else None


class ChatEvents:
    """The events (chunks) of a chat completion, as bytes."""

    def __init__(self, body: JsonObject, model: str, n: int) -> None:
        """`n`: the number of answers; several answers are not streamed."""
        options = body.get("stream_options")
        self._with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        identity = f"chatcmpl-{secrets.token_hex(14)}"
        self._head = {"id": identity, "object": "chat.completion.chunk", "created": int(time.time()), "model": model}
        self._growths, self._note = [_Growth() for _ in range(n)], note_on(body)

    def _chunk(
        self, index: int, delta: JsonDict, reason: str | None = None, logprobs: object = None, **more: object
    ) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs, **more}
        usage = {"usage": None} if self._with_usage else {}
        return _event({**self._head, "choices": [choice], **usage})

    def begin(self) -> Iterator[bytes]:
        """Yield the events before the answer."""
        for index in range(len(self._growths)):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def grow(self, now: Growing) -> Iterator[bytes]:
        """Yield the events for the part of `now` that was not sent."""
        for delta in self._growths[0].deltas(now):
            yield self._chunk(0, delta)

    def end(self, answer: Completion) -> Iterator[bytes]:
        """Yield the last events, with the rest of the answer. Raises `ApiError` if it contradicts the sent pieces."""
        for index, (growth, choice) in enumerate(zip(self._growths, choices_of(answer), strict=False)):
            unsent = choice.logprobs
            for delta in growth.deltas(choice.whole, is_whole=True):
                logprobs, unsent = (unsent, None) if "content" in delta else (None, unsent)
                yield self._chunk(index, delta, None, logprobs)
            # `unsent` has log probabilities if the answer has no text.
            yield self._chunk(index, {}, choice.finish_reason, unsent, **probabilities_of(answer), **self._note)
        if self._with_usage:
            yield _event({**self._head, "choices": [], "usage": usage_of(answer.usage)})
        yield b"data: [DONE]\n\n"

    def error(self, error: ApiError) -> bytes:
        """Return the last event of a stream that fails."""
        return _event(error.body())


class ResponseEvents:
    """The events of a response. Reasoning and texts become items of its output, in the order of their arrival."""

    def __init__(self, body: JsonObject, model: str, _n: int) -> None:
        self._body, self._response = body, response_bodies.head(body, model, "in_progress")
        self._number = -1
        self._growth = _Growth()
        self._output: list[JsonDict] = []
        self._open = ""
        """The type of the last item while its text is growing."""
        self._calls: list[tuple[int, JsonDict]] = []
        """The tool calls, with their positions in the output. They end with the response."""

    def _event(self, kind: str, **fields: object) -> bytes:
        self._number += 1
        return b"event: %b\n" % kind.encode() + _event({"type": kind, "sequence_number": self._number, **fields})

    def _of_item(self, kind: str, place: int, **fields: object) -> bytes:
        return self._event(f"response.{kind}", item_id=self._output[place]["id"], output_index=place, **fields)

    def _of_text(self, kind: str, **fields: object) -> bytes:
        return self._of_item(kind, len(self._output) - 1, content_index=0, **fields)

    def _begin(self, item: JsonDict, **empty: object) -> bytes:
        """Return the events that end the open item and start `item`, in which the fields `empty` are still empty."""
        ended = self._end_text()
        self._output.append(item)
        place = len(self._output) - 1
        return ended + self._event("response.output_item.added", output_index=place, item={**item, **empty})

    def _end(self, place: int, cut: str | None = None) -> bytes:
        item = self._output[place]
        item["status"] = "incomplete" if cut and place == len(self._output) - 1 else "completed"
        return self._event("response.output_item.done", output_index=place, item=item)

    def _add_text(self, kind: str, piece: str) -> bytes:
        begun = b""
        if self._open != kind:
            item = response_bodies.text_item(kind, "", status="in_progress")
            begun = self._begin(item, content=[]) + self._of_text("content_part.added", part=item["content"][0])
            self._open = kind
        part = self._output[-1]["content"][0]
        part["text"] += piece
        return begun + self._of_text(f"{part['type']}.delta", delta=piece, logprobs=[])

    def _end_text(self, logprobs: Sequence[Any] = (), cut: str | None = None) -> bytes:
        if not self._open:
            return b""
        self._open, part = "", self._output[-1]["content"][0]
        part |= {"logprobs": list(logprobs)} if "logprobs" in part else {}
        done = self._of_text(f"{part['type']}.done", text=part["text"], logprobs=part.get("logprobs", []))
        return done + self._of_text("content_part.done", part=part) + self._end(len(self._output) - 1, cut)

    def _add(self, delta: JsonObject) -> bytes:
        match delta:
            case {"reasoning": piece}:
                return self._add_text("reasoning", piece)
            case {"content": piece}:
                return self._add_text("message", piece)
            case {"tool_calls": [{"id": _} as call]}:
                begun = self._begin(item_of(call, self._body) | {"status": "in_progress"})
                self._calls.append((len(self._output) - 1, {**call, "function": {**call["function"]}}))
                return begun
        (filled,) = delta["tool_calls"]
        (at, call), piece = self._calls[filled["index"]], filled["function"]["arguments"]
        call["function"]["arguments"] += piece
        if self._output[at]["type"] != "function_call":
            return b""  # no event: the text is sent at the end, without the JSON that promptmill added around it
        return self._of_item("function_call_arguments.delta", at, delta=piece)

    def begin(self) -> Iterator[bytes]:
        yield self._event("response.created", response=self._response)
        yield self._event("response.in_progress", response=self._response)

    def grow(self, now: Growing) -> Iterator[bytes]:
        return map(self._add, self._growth.deltas(now))

    def end(self, answer: Completion) -> Iterator[bytes]:
        (choice, *_) = choices_of(answer)
        yield from map(self._add, self._growth.deltas(choice.whole, is_whole=True))
        cut = response_bodies.cut_of(choice)
        yield self._end_text((choice.logprobs or {}).get("content") or (), cut)
        for at, call in self._calls:
            item = self._output[at]
            item |= item_of(call, self._body) | {"id": item["id"]}
            if item["type"] == "function_call":
                yield self._of_item("function_call_arguments.done", at, name=item["name"], arguments=item["arguments"])
            elif item["type"] == "custom_tool_call":
                yield self._of_item("custom_tool_call_input.delta", at, delta=item["input"])
                yield self._of_item("custom_tool_call_input.done", at, input=item["input"])
            yield self._end(at, cut)
        response = response_bodies.finished(self._response, choice, self._output, usage_of(answer.usage))
        response |= probabilities_of(answer)
        yield self._event(f"response.{response['status']}", response=response)

    def error(self, error: ApiError) -> bytes:
        return self._event("error", code=error.code, message=error.message, param=error.param, **error.body())


def _event(data: JsonObject) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


Events: TypeAlias = ChatEvents | ResponseEvents
Show: TypeAlias = Callable[[Growing], None]


class EventStream(Response):
    """A reply that sends events while an answer grows. If its client disconnects, the answer is cancelled."""

    def __init__(self, events: Events, answer: Callable[[Show], Coroutine[Any, Any, Completion]]) -> None:
        """`answer` gets a function that it calls with the answer so far; `answer` raises `ApiError`."""
        super().__init__(headers=_HEADERS, media_type="text/event-stream")
        del self.headers["content-length"]
        self._events, self._answer = events, answer
        self._growing, self._grown = Growing(), asyncio.Event()
        self._first, self._begun = b"".join(events.begin()), False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. An error before the first event becomes an ordinary error reply."""
        error = await unless_left(receive, self._stream(send))
        if error is not None and not self._begun:
            await error.response()(scope, receive, send)
            return
        last = b"" if error is None else self._events.error(error)
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _stream(self, send: Send) -> ApiError | None:
        """Send all events except an error, which is returned."""
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
    """Return the result of `work`. If the client disconnects, cancel `work` and raise `ConnectionError`."""
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
