"""What an `Upstream` may do with a request: answers, faults, and replies that choose between others.

Each function returns a `Reply`; they nest: `late(0.05, at_most(4, answer(), status(429, retry_after="1")))`.
"""

from __future__ import annotations

import gzip
import random
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from email.utils import formatdate
from typing import Any

import orjson

from upstream import Exchange, Reply, Seen, head

_BLOCK = 1 << 16


# Answers


def completion(seen: Seen, content: Any, message: Mapping[str, Any], choice: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a chat completion; token counts are counts of words."""
    text = content if isinstance(content, str) else ""
    prompt, answered = len(seen.prompt.split()), len(text.split())
    return {
        "id": f"chatcmpl-{seen.number}",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": seen.json.get("model"),
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": "stop"}
            | dict(choice)
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": answered, "total_tokens": prompt + answered},
    }


def answer(content: Any = ..., *, message: Mapping[str, Any] | None = None, **choice: Any) -> Reply:
    """Answer well: `content`, by default an echo. `message` and `choice` add to or replace those parts of the body.

    A request with `"stream": true` gets server-sent events, the text in pieces of a few characters.
    """

    async def reply(exchange: Exchange) -> None:
        seen = exchange.seen
        said = f"echo: {seen.prompt}" if content is ... else content
        if seen.json.get("stream"):
            await _send_events(exchange, said, message or {}, choice)
        else:
            await exchange.respond(200, {}, orjson.dumps(completion(seen, said, message or {}, choice)))

    return reply


async def _send_events(exchange: Exchange, content: Any, message: Mapping[str, Any], choice: Mapping[str, Any]) -> None:
    whole = completion(exchange.seen, content, message, choice)
    usage = (exchange.seen.json.get("stream_options") or {}).get("include_usage")
    await exchange.write(head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}))
    out = b"".join(_chunk(b"data: %b\n\n" % orjson.dumps(event)) for event in events(whole, usage=bool(usage)))
    await exchange.write(out + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def events(whole: Mapping[str, Any], *, usage: bool = True) -> list[dict[str, Any]]:
    """Return the events that stream the completion `whole`."""
    common = {
        "id": whole["id"],
        "object": "chat.completion.chunk",
        "created": whole["created"],
        "model": whole["model"],
    }
    choice = whole["choices"][0]
    message = choice["message"]
    text = message["content"] if isinstance(message["content"], str) else ""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{name: value} for name, value in message.items() if name not in {"role", "content"}]
    deltas += [{"content": text[at : at + 7]} for at in range(0, len(text), 7)]
    streamed = [{**common, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    streamed.append({**common, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]})
    if usage:
        streamed.append({**common, "choices": [], "usage": whole["usage"]})
    return streamed


def sse(*lines: bytes, cut: bool = False) -> Reply:
    """Send these lines of an event stream; `cut` closes the connection before its proper end."""

    async def reply(exchange: Exchange) -> None:
        await exchange.write(head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}))
        for line in lines:
            await exchange.write(_chunk(line + b"\n\n"))
        if cut:
            exchange.close()
        else:
            await exchange.write(b"0\r\n\r\n")

    return reply


def deltas(*pieces: Mapping[str, Any], finish_reason: str = "stop", hangs: bool = False) -> Reply:
    """Stream a chat completion of these deltas; with `hangs`, nothing comes after them."""
    events = [{"choices": [{"index": 0, "delta": delta}]} for delta in pieces]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}}

    async def reply(exchange: Exchange) -> None:
        await exchange.write(head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}))
        for event in events if hangs else [*events, end, usage]:
            await exchange.write(_chunk(b"data: %b\n\n" % orjson.dumps(event)))
        if hangs:
            await exchange.sleep(None)
        await exchange.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    return reply


def raw(body: bytes, *, code: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """Send exactly this body."""

    async def reply(exchange: Exchange) -> None:
        await exchange.respond(code, dict(headers or {}), body)

    return reply


def html(code: int = 200) -> Reply:
    """Send a web page, as captive portals and proxies do."""
    page = b"<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body>Please log in</body></html>"
    return raw(page, code=code, headers={"Content-Type": "text/html"})


def zipped() -> Reply:
    """Answer well, compressed, whatever the client accepts."""

    async def reply(exchange: Exchange) -> None:
        body = orjson.dumps(completion(exchange.seen, f"echo: {exchange.seen.prompt}", {}, {}))
        await exchange.respond(200, {"Content-Encoding": "gzip"}, gzip.compress(body))

    return reply


# Refusals


def status(
    code_number: int,
    message: str = "refused by the test",
    *,
    code: Any = None,
    kind: str = "invalid_request_error",
    retry_after: str | Callable[[], str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Answer with this status and an error body as OpenAI writes it."""

    async def reply(exchange: Exchange) -> None:
        more = dict(headers or {})
        if retry_after is not None:
            more["Retry-After"] = retry_after if isinstance(retry_after, str) else retry_after()
        body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
        await exchange.respond(code_number, more, orjson.dumps(body))

    return reply


def http_date(seconds: float) -> Callable[[], str]:
    """Return a maker of the HTTP date so many seconds from then."""
    return lambda: formatdate(time.time() + seconds, usegmt=True)


def quota() -> Reply:
    """Refuse as OpenAI does when the money is gone."""
    text = "You exceeded your current quota, please check your plan and billing details."
    return status(429, text, code="insufficient_quota", kind="insufficient_quota")


def redirect(url: str, code: int = 307) -> Reply:
    """Send the client elsewhere."""
    return raw(b"", code=code, headers={"Location": url})


# Faults of the connection


def reset(after: int | None = None) -> Reply:
    """Reset the connection: before anything is answered, or after so many bytes of the body."""

    async def reply(exchange: Exchange) -> None:
        if after is not None:
            body = _body(exchange)
            await exchange.write(head(200, {"Content-Length": str(len(body))}) + body[:after])
            await exchange.sleep(0.02)  # so that the client has read so far
        exchange.reset()

    return reply


def closed() -> Reply:
    """Close the connection in order, without an answer."""

    async def reply(exchange: Exchange) -> None:
        exchange.close()

    return reply


def truncated(keep: int = 40) -> Reply:
    """End a chunked body after `keep` bytes, before its last chunk."""

    async def reply(exchange: Exchange) -> None:
        await exchange.write(head(200, {"Transfer-Encoding": "chunked"}) + _chunk(_body(exchange)[:keep]))
        exchange.close()

    return reply


def wrong_length(difference: int) -> Reply:
    """Promise so many bytes more (then close) or fewer (then keep the connection) than are sent."""

    async def reply(exchange: Exchange) -> None:
        body = _body(exchange)
        await exchange.respond(200, {"Content-Length": str(len(body) + difference)}, body)
        if difference > 0:
            exchange.close()

    return reply


def hang(after: int | None = None) -> Reply:
    """Fall silent for good: before the headers, or after so many bytes of the body."""

    async def reply(exchange: Exchange) -> None:
        if after is not None:
            body = _body(exchange)
            await exchange.write(head(200, {"Content-Length": str(len(body))}) + body[:after])
        await exchange.sleep(None)

    return reply


def drip(interval: float, pieces: int) -> Reply:
    """Answer well, but in so many pieces with so many seconds before each."""

    async def reply(exchange: Exchange) -> None:
        body = _body(exchange)
        await exchange.write(head(200, {"Content-Length": str(len(body))}))
        size = -(-len(body) // pieces)
        for at in range(0, len(body), size):
            await exchange.sleep(interval)
            await exchange.write(body[at : at + size])

    return reply


def huge(size: int, *, zipped: bool = False) -> Reply:
    """Send an answer of `size` bytes, made as it goes; `zipped` packs it a thousandfold."""

    async def reply(exchange: Exchange) -> None:
        more = {"Content-Encoding": "gzip"} if zipped else {}
        await exchange.write(head(200, {"Transfer-Encoding": "chunked"} | more))
        if zipped:  # members of a gzip stream may follow each other
            block = gzip.compress(b"x" * (1 << 20))
            for _ in range(size >> 20):
                await exchange.write(_chunk(block))
        else:
            await exchange.write(_chunk(b'{"choices":[{"message":{"role":"assistant","content":"'))
            block = _chunk(b"x" * _BLOCK)
            for _ in range(size // _BLOCK):
                await exchange.write(block)
            await exchange.write(_chunk(b'"},"finish_reason":"stop"}]}'))
        await exchange.write(b"0\r\n\r\n")

    return reply


def bomb(size: int, coding: str) -> Reply:
    """Send a body packed by `coding`, gzip or deflate, of which `size` bytes come when it is unpacked, and no end."""
    packer = zlib.compressobj(9, wbits=31 if coding == "gzip" else 15)
    first, again = (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return raw(first + again * ((size >> 20) - 1), headers={"Content-Encoding": coding})


def then_close(reply: Reply, seconds: float = 0) -> Reply:
    """Reply, then close the kept-alive connection without having said so, `seconds` later."""

    async def closing(exchange: Exchange) -> None:
        await reply(exchange)
        if seconds:
            await exchange.sleep(seconds)
        exchange.close()

    return closing


def _body(exchange: Exchange) -> bytes:
    return orjson.dumps(completion(exchange.seen, f"echo: {exchange.seen.prompt}", {}, {}))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# Choosing between replies


def choose(pick: Callable[[Seen], Reply]) -> Reply:
    """Reply with what `pick` returns for the request."""

    async def reply(exchange: Exchange) -> None:
        await pick(exchange.seen)(exchange)

    return reply


def by_prompt(table: Mapping[str, Reply], otherwise: Reply | None = None) -> Reply:
    """Reply by the text of the last user turn."""
    default = otherwise or answer()
    return choose(lambda seen: table.get(seen.prompt, default))


def attempts(*replies: Reply) -> Reply:
    """Reply to the first, second, … attempt of each prompt; the last reply stands for all later ones."""
    return choose(lambda seen: replies[min(seen.attempt, len(replies)) - 1])


def from_request(number: int, then: Reply, before: Reply | None = None) -> Reply:
    """Change to `then` from the request with this number on, counted over all prompts from 1."""
    default = before or answer()
    return choose(lambda seen: then if seen.number >= number else default)


def interim(reply: Reply) -> Reply:
    """Send early hints first, as proxies do, then reply."""

    async def hinting(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
        await reply(exchange)

    return hinting


def late(seconds: float | None, reply: Reply | None = None) -> Reply:
    """Reply after `seconds`; None waits until the client goes away."""
    default = reply or answer()

    async def delayed(exchange: Exchange) -> None:
        await exchange.sleep(seconds)
        await default(exchange)

    return delayed


def at_most(n: int | Callable[[], int], reply: Reply, refusal: Reply) -> Reply:
    """Serve `n` requests at a time and refuse the others."""
    active = 0

    async def limited(exchange: Exchange) -> None:
        nonlocal active
        if active >= (n() if callable(n) else n):
            await refusal(exchange)
            return
        active += 1
        try:
            await reply(exchange)
        finally:
            active -= 1

    return limited


def at_rate(n: int, per_s: float, reply: Reply, refusal: Reply) -> Reply:
    """Serve `n` requests in any `per_s` seconds and refuse the others."""
    served: deque[float] = deque()

    async def limited(exchange: Exchange) -> None:
        now = time.monotonic()
        while served and served[0] <= now - per_s:
            served.popleft()
        if len(served) >= n:
            await refusal(exchange)
            return
        served.append(now)
        await reply(exchange)

    return limited


def vanishing(number: int, seconds: float | None, reply: Reply | None = None) -> Reply:
    """At the request with this number the whole upstream goes away, for `seconds` or for good."""
    default = reply or answer()

    async def vanish(exchange: Exchange) -> None:
        if exchange.seen.number == number:
            exchange.upstream.vanish(seconds)
        else:
            await default(exchange)

    return vanish


def chaos(seed: int, share: float, faults: Sequence[Reply], reply: Reply | None = None) -> Reply:
    """Meet a `share` of the requests with one of `faults`, by chance; say `seed` when it matters."""
    chance = random.Random(seed)
    default = reply or answer()
    return choose(lambda _: chance.choice(faults) if chance.random() < share else default)
