"""A loopback provider with a Batch API: it answers, bills and misbehaves as OpenAI, Azure, Anthropic and others.

    with BatchServer("openai", shuffled=True, lost_creates=1) as server:    # a thread with an event loop of its own
        ...                                                                 # batches and chats at server.base_url
        assert set(server.billed.values()) == {1}

or in a process of its own, which prints its address and reports its state as JSON at `GET /state`:

    python tests/support/batch_server.py --family gemini --port 0 --switch shuffled --switch missing=10

A request is answered with a text that follows from its prompt (`answer_to`), live or by batch. The server counts how
often each prompt was billed, and knows which files still exist and which results were never read. It has a clock of its
own, which `advance` and `POST /control {"advance_s": 30}` set forward; `POST /control {"switches": {…}}` changes
switches. `Switches` lists the faults.

Shapes: the packages of the providers, openai 3.54.0, anthropic 2.12.0, google-genai 3.4.0, mistralai 3.7.0,
openrouter 1.3.84, together 3.1.1; Azure's from its pages on batches.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import itertools
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import orjson
from aiohttp import BodyPartReader, web

_BLOCK = 1 << 16
TOO_LONG = {"message": "This model's maximum context length is 2000 tokens.", "code": "context_length_exceeded"}
FULL = "Enqueued token limit reached for test in organization org-1. Limit: 90,000 enqueued tokens."


@dataclass(slots=True)
class Switches:
    """The faults of a provider. Those that count something happen so often, then no more."""

    polls: int = 1
    """Looks at a batch until it ends."""
    duration_s: float = 0.0
    """The shortest time until it ends, on the server's clock."""
    list_lag_s: float = 0.0
    """The time until a new batch or file appears in lists."""
    shuffled: bool = False
    """Results come in any order."""
    missing: int = 0
    """Every so many requests, one appears in no result; it is not billed."""
    errors: int = 0
    """Every so many requests, one fails, in the two shapes in turn; it is not billed."""
    error_status: int = 500
    empty_errors: bool = False
    """A completed batch has an error file without lines."""
    damaged: int = 0
    """Every so many results, one is cut in the middle of its line."""
    duplicates: int = 0
    """Every so many results, one comes a second time with another text."""
    capitals: bool = False
    """States in other capitals."""
    page: int = 100
    """The longest page of a list."""
    one_page: bool = False
    """Lists have one page, whatever is asked for."""
    iso_times: bool = False
    null_counts: bool = False
    text_counts: bool = False
    finished: float = 1.0
    """The part that is answered when the batch expires; 1: it does not expire."""
    cancelled: float = 0.5
    """The part that is answered when a running batch is cancelled."""
    full: int = 0
    """Batches that fail with `token_limit_exceeded` after they were created."""
    refused_creates: int = 0
    """Creations answered with 429."""
    lost_creates: int = 0
    """Creations that are carried out, but whose answer is lost."""
    lost_uploads: int = 0
    lost_by: str = "close"
    """How answers are lost: `close` ends the connection, a number is a status."""
    cut_downloads: int = 0
    """Downloads that end in the middle."""
    flaky: int = 0
    """Requests that only read, answered with 503 or 429."""
    slow_files: int = 0
    """Looks at an uploaded file until it is processed."""
    gone: bool = False
    """Results are no longer kept."""
    no_batches: bool = False
    """The provider has no Batch API."""
    held: str = ""
    """Requests of these kinds are carried out but answered only once the client is gone: `upload`, `create`, `poll`,
    `cancel`, `download` (half of it is sent), `live`. Separated by commas; each happens once."""
    choices: str = ""
    """Answers are one of these, separated by commas."""

    def set(self, values: dict[str, Any]) -> None:
        """Change some; values may be texts."""
        kinds = {each.name: type(getattr(self, each.name)) for each in fields(self)}
        for name, value in values.items():
            kind = kinds[name]
            is_on = value in {"1", "true", "True"} if isinstance(value, str) else bool(value)
            setattr(self, name, is_on if kind is bool else kind(value))


AZURE = {"capitals": True, "iso_times": True, "null_counts": True, "empty_errors": True, "slow_files": 2}
FAMILIES = ("openai", "azure", "together", "mistral", "anthropic", "gemini", "openrouter", "fireworks")


@dataclass(slots=True)
class StoredFile:
    """An uploaded file or a file of results."""

    id: str
    name: str
    created: float
    path: Path
    is_result: bool = False
    looks: int = 0
    batch: str = ""


@dataclass(slots=True)
class Batch:
    """A batch at the provider."""

    id: str
    created: float
    rows: list[tuple[str, dict[str, Any]]]
    total: int
    model: str = ""
    key: Any = None
    """What the client sent as its label."""
    input_file: str = ""
    endpoint: str = ""
    polls: int = 0
    said: str = ""
    """The final state; empty while it runs."""
    cancelling: bool = False
    done: int = 0
    failed: int = 0
    ended: float = 0.0
    files: list[str] = field(default_factory=list)
    """Ids of the files of answers and of errors."""
    was_read: bool = False
    is_deleted: bool = False


def answer_to(prompt: str, choices: str = "") -> str:
    """Return the text that answers a prompt."""
    if choices:
        names = choices.split(",")
        return names[zlib.crc32(prompt.encode()) % len(names)]
    return f"echo: {prompt}"


def prompt_of(body: dict[str, Any]) -> str:
    """Return the text of the last user turn of a request in any dialect."""
    turns = body.get("contents") or body.get("messages") or body.get("input") or []
    if isinstance(turns, str):
        return turns
    for turn in reversed(turns):
        if turn.get("role", "user") == "user":
            content = turn.get("parts") or turn.get("content") or ""
            return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return ""


class _LostError(Exception):
    """The request was carried out, its answer is lost."""


class BatchServer:
    """One provider. Read `billed`, `files`, `batches`, `creates`, `live` at any time; set `switches`."""

    def __init__(self, family: str = "openai", *, port: int = 0, **switches: Any) -> None:
        self.family = family
        self.switches = Switches()
        self.switches.set((AZURE if family == "azure" else {}) | switches)
        self.files: dict[str, StoredFile] = {}
        self.batches: dict[str, Batch] = {}
        self.billed: Counter[str] = Counter()
        """How often each prompt was billed, live and by batch."""
        self.billed_ids: Counter[str] = Counter()
        """How often each custom id was billed."""
        self.tokens: Counter[str] = Counter()
        """Billed tokens: `batch_prompt`, `batch_answer`, `live_prompt`, `live_answer`."""
        self.creates = self.uploads = self.live = 0
        """Requests that were carried out."""
        self.requests: Counter[str] = Counter()
        """Requests by kind."""
        self.keyless = 0
        """Requests without the provider's own header for the key."""
        self.leaked = 0
        """Requests to another origin that carried the key."""
        self.answers: Callable[[dict[str, Any]], str | None] = lambda body: answer_to(
            prompt_of(body), self.switches.choices
        )
        """Returns the answer to the body of a request; None: the request is refused as too long."""
        self.offset_s = 0.0
        self.folder = Path(tempfile.mkdtemp(prefix="batches-"))
        self.port = port
        self._ids = itertools.count(1)
        self._rng = random.Random(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: web.AppRunner | None = None

    # its life

    def __enter__(self) -> BatchServer:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="batch server", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.start(), self._loop).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self.stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def start(self) -> None:
        """Listen."""
        app = web.Application(client_max_size=1 << 30, middlewares=[self._around])
        app.router.add_get("/state", self._show_state)
        app.router.add_post("/control", self._control)
        _ROUTES[self.family](self, app.router)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, backlog=1024)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close all connections and forget the files."""
        if self._runner is not None:
            await self._runner.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def base_url(self) -> str:
        """The `base_url` of a client's configuration."""
        path = {"azure": "/openai/v1", "gemini": "/v1beta", "openrouter": "/api/v1", "fireworks": "/inference/v1"}.get(
            self.family, "/v1"
        )
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def now(self) -> float:
        """The time of the server's clock."""
        return time.time() + self.offset_s

    def advance(self, seconds: float) -> None:
        """Set the clock forward."""
        self.offset_s += seconds

    # its state

    def left_files(self) -> list[str]:
        """Return the names of the files that still exist."""
        return [file.name for file in list(self.files.values())]

    def never_read(self) -> list[str]:
        """Return the ids of batches whose results were billed, but never read to their end."""
        return [batch.id for batch in list(self.batches.values()) if batch.done and not batch.was_read]

    def running(self) -> list[str]:
        """Return the ids of batches that have not ended."""
        return [batch.id for batch in list(self.batches.values()) if not batch.said]

    def state(self) -> dict[str, Any]:
        """Return the counts as JSON has them."""
        return {
            "billed": dict(self.billed),
            "billed_ids": dict(self.billed_ids),
            "tokens": dict(self.tokens),
            "creates": self.creates,
            "uploads": self.uploads,
            "live": self.live,
            "requests": dict(self.requests),
            "files": self.left_files(),
            "batches": [
                {"id": each.id, "said": each.said, "requests": each.total, "done": each.done, "read": each.was_read}
                for each in self.batches.values()
            ],
            "never_read": self.never_read(),
            "running": self.running(),
            "switches": asdict(self.switches),
        }

    async def _show_state(self, _: web.Request) -> web.Response:
        return reply(self.state())

    async def _control(self, request: web.Request) -> web.Response:
        wanted = orjson.loads(await request.read())
        self.advance(wanted.get("advance_s", 0))
        self.switches.set(wanted.get("switches", {}))
        return reply(self.state())

    # faults

    @web.middleware
    async def _around(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        is_ours = request.path in {"/state", "/control"}
        wanted = _KEYS.get(self.family, {"authorization", "api-key"})
        if not is_ours and not request.path.startswith("/upload/") and not wanted & {*map(str.lower, request.headers)}:
            self.keyless += 1
        if request.method == "GET" and not is_ours and self.take("flaky"):
            status = 429 if self.switches.flaky % 2 else 503
            return reply({"error": {"message": "overloaded, try again"}}, status=status, headers={"Retry-After": "0"})
        try:
            return await handler(request)
        except _LostError:
            if self.switches.lost_by.isdigit():
                return web.Response(status=int(self.switches.lost_by), text="<html>Bad Gateway</html>")
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

    def take(self, name: str) -> bool:
        """Return whether a fault that is counted happens now."""
        left: int = getattr(self.switches, name)
        if left > 0:
            setattr(self.switches, name, left - 1)
        return left > 0

    async def after(self, kind: str, request: web.Request) -> None:
        """Lose or hold the answer to a request that was carried out."""
        self.requests[kind] += 1
        if self.is_held(kind):
            while request.transport is not None and not request.transport.is_closing():
                await asyncio.sleep(0.02)
            raise _LostError
        if kind in {"create", "upload"} and self.take(f"lost_{kind}s"):
            raise _LostError

    def is_held(self, kind: str) -> bool:
        """Return whether the answer of this kind is held, once."""
        kinds = self.switches.held.split(",")
        if kind not in kinds:
            return False
        self.switches.held = ",".join(each for each in kinds if each != kind)
        return True

    # values in the provider's forms

    def time(self, value: float) -> Any:
        """Return a time as the provider writes it; None for 0."""
        if not value:
            return None
        if self.switches.iso_times:
            return dt.datetime.fromtimestamp(value, dt.UTC).isoformat().replace("+00:00", "1+00:00")  # seven digits
        return int(value)

    def word(self, value: str) -> str:
        """Return a state in the capitals of the switch."""
        return value.capitalize() if self.switches.capitals else value

    def count(self, value: int) -> Any:
        """Return a count, or null, or a text."""
        return None if self.switches.null_counts else str(value) if self.switches.text_counts else value

    def is_listed(self, created: float) -> bool:
        """Return whether lists already have something of that time."""
        return self.now >= created + self.switches.list_lag_s

    def new_id(self, prefix: str) -> str:
        """Return an id."""
        return f"{prefix}{next(self._ids):06d}"

    # files

    def store(self, name: str, *, is_result: bool = False, batch: str = "") -> StoredFile:
        """Return a new, empty file."""
        prefix = {"gemini": "files/"}.get(self.family, "file-")
        file_id = self.new_id(prefix)
        self.files[file_id] = StoredFile(
            file_id, name, self.now, self.folder / file_id.replace("/", "-"), is_result, batch=batch
        )
        return self.files[file_id]

    async def receive(self, file: StoredFile, pieces: AsyncIterator[bytes]) -> None:
        """Write what arrives into a file. Nothing of it remains if the client leaves."""
        try:
            with file.path.open("wb") as out:
                async for piece in pieces:
                    out.write(piece)
        except BaseException:
            del self.files[file.id]
            raise
        self.uploads += 1

    async def download(self, request: web.Request, file: StoredFile | None) -> web.StreamResponse:
        """Send a file, or only a half of it."""
        self.requests["download"] += 1
        if file is None or (self.switches.gone and file.is_result):
            return not_found()
        content = file.path.read_bytes() if file.path.exists() else b""
        is_held = bool(content) and self.is_held("download")
        response = web.StreamResponse(headers={"Content-Length": str(len(content))})
        await response.prepare(request)
        is_cut = bool(content) and self.take("cut_downloads")
        shown = content[: len(content) // 2] if is_cut or is_held else content
        for start in range(0, len(shown), _BLOCK):
            await response.write(shown[start : start + _BLOCK])
        if is_held:
            while request.transport is not None and not request.transport.is_closing():
                await asyncio.sleep(0.02)
        elif is_cut:
            assert request.transport is not None
            request.transport.close()
        else:
            await response.write_eof()
            if file.batch:
                self._note_read(self.batches[file.batch], file)
        return response

    def _note_read(self, batch: Batch, file: StoredFile) -> None:
        if not batch.files or file.id == batch.files[0]:
            batch.was_read = True

    # batches

    def create(self, rows: list[tuple[str, dict[str, Any]]], *, name: str = "", **known: Any) -> Batch:
        """Return a new batch, with the id that the client chose, if any."""
        prefix = {"anthropic": "msgbatch_", "gemini": "batches/"}.get(self.family, "batch_")
        batch = Batch(name or self.new_id(prefix), self.now, rows, len(rows), **known)
        self.creates += 1
        self.batches[batch.id] = batch
        if self.take("full"):
            batch.said, batch.ended = "failed", self.now
        return batch

    def listed(self) -> list[Batch]:
        """Return the batches that lists have, newest first."""
        found = [each for each in self.batches.values() if self.is_listed(each.created) and not each.is_deleted]
        return found[::-1]

    def look(self, batch: Batch) -> None:
        """Let a batch progress: its state is asked for."""
        batch.polls += 1
        over = batch.polls > self.switches.polls and self.now >= batch.created + self.switches.duration_s
        if batch.said or not (over or batch.cancelling):
            return
        if batch.cancelling:
            self._finish(batch, "cancelled", self.switches.cancelled)
        elif self.switches.finished < 1:
            self._finish(batch, "expired", self.switches.finished)
        else:
            self._finish(batch, "completed", 1.0)

    def cancel(self, batch: Batch) -> bool:
        """Cancel a batch, which ends at the next look. Return whether it was running."""
        if batch.said:
            return False
        batch.cancelling = True
        return True

    def _finish(self, batch: Batch, said: str, part: float) -> None:
        """Answer the first part of a batch and bill it; write the results."""
        shape = _SHAPES[self.family]
        lines: list[bytes] = []
        errors: list[bytes] = []
        finished = round(len(batch.rows) * part)
        for number, (custom_id, body) in enumerate(batch.rows, 1):
            if number > finished:
                unfinished = shape(self, custom_id, said, None)
                if unfinished is not None:
                    errors.append(orjson.dumps(unfinished))
            elif _is_each(self.switches.missing, number):
                continue
            elif _is_each(self.switches.errors, number):
                batch.failed += 1
                kind = "error" if number // self.switches.errors % 2 else "bare error"
                errors.append(orjson.dumps(shape(self, custom_id, kind, None)))
            else:
                prompt, answer = prompt_of(body), self.answers(body)
                if answer is None:
                    batch.failed += 1
                    errors.append(orjson.dumps(shape(self, custom_id, "too long", None)))
                    continue
                batch.done += 1
                self.bill(prompt, answer, "batch")
                self.billed_ids[custom_id] += 1
                line = orjson.dumps(shape(self, custom_id, "answer", body_of(self.family, body, answer)))
                is_cut = _is_each(self.switches.damaged, number) and self.family != "openrouter"
                lines.append(line[: len(line) // 2] if is_cut else line)
                if _is_each(self.switches.duplicates, number):
                    second = body_of(self.family, body, f"second {answer}")
                    lines.append(orjson.dumps(shape(self, custom_id, "answer", second)))
        if self.family in _ONE_FILE:
            lines, errors = lines + errors, []
        if self.switches.shuffled:
            self._rng.shuffle(lines)
        batch.said, batch.ended, batch.rows = said, self.now, []
        is_written = [bool(lines) or self.family in _ONE_FILE, bool(errors) or self.switches.empty_errors]
        for content, name, written in zip((lines, errors), ("output", "error"), is_written, strict=True):
            if written:
                file = self.store(f"{batch.id}_{name}.jsonl".replace("/", "-"), is_result=True, batch=batch.id)
                file.path.write_bytes(b"".join(line + b"\n" for line in content))
                batch.files.append(file.id)
            else:
                batch.files.append("")

    def bill(self, prompt: str, answer: str, way: str) -> None:
        """Count a billed answer."""
        self.billed[prompt] += 1
        self.tokens[f"{way}_prompt"] += len(prompt.split())
        self.tokens[f"{way}_answer"] += len(answer.split())

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer a live request."""
        self.requests["live"] += 1
        body = orjson.loads(await request.read())
        prompt, answer = prompt_of(body), self.answers(body)
        if answer is None:
            return reply({"error": TOO_LONG}, status=400)
        self.live += 1
        self.bill(prompt, answer, "live")
        if self.is_held("live"):
            await self.after("live", request)
        return reply(body_of(self.family, body, answer, tier="standard"))


def _is_each(every: int, number: int) -> bool:
    return every > 0 and number % every == 0


def reply(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return a response of JSON."""
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json", headers=headers)


def not_found(what: str = "No such object") -> web.Response:
    """Return a 404."""
    return reply({"error": {"message": what, "type": "invalid_request_error", "code": None}}, status=404)


def body_of(family: str, body: dict[str, Any], answer: str, *, tier: str = "batch") -> dict[str, Any]:
    """Return the body of an answer in the dialect of a family; `tier` is Anthropic's service tier."""
    asked, said = len(prompt_of(body).split()), len(answer.split())
    if family == "anthropic":
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": body.get("model", ""),
            "content": [{"type": "text", "text": answer}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": asked, "output_tokens": said, "service_tier": tier},
        }
    if family == "gemini":
        content = {"role": "model", "parts": [{"text": answer}]}
        return {
            "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
            "usageMetadata": {
                "promptTokenCount": asked,
                "candidatesTokenCount": said,
                "totalTokenCount": asked + said,
            },
            "modelVersion": "test",
            "responseId": "r1",
        }
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": body.get("model", ""),
        "choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said},
    }


# ---- the shapes of results


def _openai_shape(server: BatchServer, custom_id: str, kind: str, body: Any) -> dict[str, Any] | None:
    line: dict[str, Any] = {"id": f"batch_req_{custom_id}", "custom_id": custom_id, "response": None, "error": None}
    status = server.switches.error_status
    error = {"message": "The server had an error", "type": "server_error", "param": None, "code": None}
    if kind == "answer":
        line["response"] = {"status_code": 200, "request_id": "r1", "body": body}
    elif kind == "too long":
        line["response"] = {"status_code": 400, "request_id": "r1", "body": {"error": TOO_LONG}}
    elif kind == "error":
        line["response"] = {"status_code": status, "request_id": "r1", "body": {"error": error}}
    elif kind == "bare error":
        line["error"] = {"code": "server_error", "message": "The server had an error"}
    elif server.family == "mistral":
        return None
    else:
        text = "This request could not be executed before the completion window expired."
        line["error"] = {"code": f"batch_{said_of(kind)}", "message": text}
    return line


def said_of(kind: str) -> str:
    """Return `expired` or `cancelled`."""
    return "expired" if kind == "expired" else "cancelled"


def _anthropic_shape(server: BatchServer, custom_id: str, kind: str, body: Any) -> dict[str, Any] | None:
    error = {"type": "overloaded_error" if kind == "bare error" else "api_error", "message": "Overloaded"}
    results = {
        "answer": {"type": "succeeded", "message": body},
        "expired": {"type": "expired"},
        "cancelled": {"type": "canceled"},
    }
    errored = {"type": "errored", "error": {"type": "error", "error": error, "request_id": "r1"}}
    return {"custom_id": custom_id, "result": results.get(kind, errored)}


def _gemini_shape(server: BatchServer, custom_id: str, kind: str, body: Any) -> dict[str, Any] | None:
    if kind == "answer":
        return {"key": custom_id, "response": body}
    if kind in {"error", "bare error"}:  # a status, or a code of google.rpc
        code = server.switches.error_status if kind == "error" else 13
        return {"key": custom_id, "error": {"code": code, "message": "Internal error"}}
    return None


_SHAPES: dict[str, Callable[[BatchServer, str, str, Any], dict[str, Any] | None]] = {
    **dict.fromkeys(("openai", "azure", "together", "mistral", "openrouter", "fireworks"), _openai_shape),
    "anthropic": _anthropic_shape,
    "gemini": _gemini_shape,
}
_ONE_FILE = frozenset({"anthropic", "gemini", "openrouter"})
_KEYS = {"anthropic": {"x-api-key"}, "gemini": {"x-goog-api-key"}}


# ---- what families with files share


def _too_many() -> web.Response:
    error = {"message": "Rate limit reached for batches", "type": "rate_limit_error", "code": "rate_limit_exceeded"}
    return reply({"error": error}, status=429, headers={"Retry-After": "7"})


def _rows_of(path: Path, body: str = "body", name: str = "custom_id") -> list[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:
        lines = [orjson.loads(line) for line in file]
    return [(line[name], line[body]) for line in lines]


async def _form_file(server: BatchServer, request: web.Request) -> StoredFile | None:
    file: StoredFile | None = None
    purpose = ""
    async for part in await request.multipart():
        assert isinstance(part, BodyPartReader)
        if part.name == "purpose":
            purpose = await part.text()
        elif part.name == "file":
            file = server.store(part.filename or "")
            await server.receive(file, _pieces(part))
    assert purpose == "batch"
    return file


async def _pieces(part: BodyPartReader) -> AsyncIterator[bytes]:
    while piece := await part.read_chunk(_BLOCK):
        yield piece


def _paged(
    server: BatchServer, request: web.Request, entries: list[dict[str, Any]], after: str = "after"
) -> tuple[list[dict[str, Any]], bool]:
    """Return a page of entries by the id after which it starts, and whether more follow."""
    limit = min(int(request.query.get("limit", 20)), server.switches.page)
    ids = [entry["id"] for entry in entries]
    start = ids.index(request.query[after]) + 1 if request.query.get(after) in ids else 0
    if server.switches.one_page:
        return entries, True
    return entries[start : start + limit], start + limit < len(entries)


class _FilesRoutes:
    """`/files` of OpenAI's family, Mistral and xAI."""

    def __init__(self, server: BatchServer, base: str, router: web.UrlDispatcher) -> None:
        self.server, self.base = server, base
        router.add_post(f"{base}/files", self.upload)
        router.add_get(f"{base}/files", self.list)
        router.add_get(f"{base}/files/{{id}}", self.show)
        router.add_get(f"{base}/files/{{id}}/content", self.content)
        router.add_delete(f"{base}/files/{{id}}", self.delete)
        router.add_put("/upload/{id}", self.put)
        router.add_get("/upload/{id}", self.stored)
        router.add_post(f"{base}/files/{{id}}/preprocess", self.show)

    def shown(self, file: StoredFile) -> dict[str, Any]:
        is_ready = file.looks > self.server.switches.slow_files or file.is_result
        return {
            "id": file.id,
            "object": "file",
            "bytes": file.path.stat().st_size if file.path.exists() else 0,
            "created_at": self.server.time(file.created),
            "filename": file.name,
            "purpose": "batch_output" if file.is_result else "batch",
            "status": "processed" if is_ready else "pending",
        }

    async def upload(self, request: web.Request) -> web.StreamResponse:
        server = self.server
        if server.switches.no_batches:
            return not_found()
        if server.family == "together":
            given = await request.post()
            assert (given["purpose"], given["file_type"]) == ("batch-api", "jsonl")
            file = server.store(str(given["file_name"]))
            place = f"http://localhost:{server.port}/upload/{file.id}"  # another origin
            return web.Response(status=302, headers={"Location": place, "X-Together-File-Id": file.id})
        received = await _form_file(server, request)
        assert received is not None
        received.looks = 1
        await server.after("upload", request)
        return reply(self.shown(received))

    async def put(self, request: web.Request) -> web.StreamResponse:
        self.server.leaked += "authorization" in {*map(str.lower, request.headers)}
        file = self.server.files[request.match_info["id"]]
        await self.server.receive(file, request.content.iter_chunked(_BLOCK))
        await self.server.after("upload", request)
        return web.Response()

    async def list(self, request: web.Request) -> web.StreamResponse:
        if self.server.switches.no_batches:
            return not_found()
        self.server.requests["files"] += 1
        found = [file for file in self.server.files.values() if self.server.is_listed(file.created)]
        page, more = _paged(self.server, request, [self.shown(file) for file in found][::-1])
        return reply({"object": "list", "data": page, "has_more": more})

    async def show(self, request: web.Request) -> web.StreamResponse:
        file = self.server.files.get(request.match_info["id"])
        if file is None:
            return not_found()
        file.looks += 1
        return reply(self.shown(file))

    async def content(self, request: web.Request) -> web.StreamResponse:
        if self.server.family == "together" and request.match_info["id"] in self.server.files:
            place = f"http://localhost:{self.server.port}/upload/{request.match_info['id']}?signature=s"
            return web.Response(status=302, headers={"Location": place})
        return await self.stored(request)

    async def stored(self, request: web.Request) -> web.StreamResponse:
        self.server.leaked += "signature" in request.query and "authorization" in {*map(str.lower, request.headers)}
        return await self.server.download(request, self.server.files.get(request.match_info["id"]))

    async def delete(self, request: web.Request) -> web.StreamResponse:
        file = self.server.files.pop(request.match_info["id"], None)
        if file is None:
            return not_found()
        file.path.unlink(missing_ok=True)
        return reply({"id": file.id, "object": "file", "deleted": True})


# ---- OpenAI, Azure, Together


class _OpenAIRoutes:
    def __init__(self, server: BatchServer, router: web.UrlDispatcher) -> None:
        base = "/openai/v1" if server.family == "azure" else "/v1"
        self.server, self.files = server, _FilesRoutes(server, base, router)
        router.add_post(f"{base}/batches", self.create)
        router.add_get(f"{base}/batches", self.list)
        router.add_get(f"{base}/batches/{{id}}", self.show)
        router.add_post(f"{base}/batches/{{id}}/cancel", self.cancel)
        router.add_post(f"{base}/chat/completions", server.chat)

    def shown(self, batch: Batch) -> dict[str, Any]:
        server = self.server
        said = batch.said or ("cancelling" if batch.cancelling else "in_progress" if batch.polls else "validating")
        files = [file or None for file in [*batch.files, "", ""][:2]]
        common = {
            "id": batch.id,
            "endpoint": batch.endpoint,
            "input_file_id": batch.input_file,
            "output_file_id": files[0],
            "error_file_id": files[1],
            "created_at": server.time(batch.created),
        }
        if server.family == "together":
            progress = 100.0 if batch.said else 0.0
            return common | {"status": said.upper(), "progress": progress, "error": None, "model_id": batch.model}
        counts = {"total": batch.total, "completed": batch.done, "failed": batch.failed}
        error = {
            "code": "token_limit_exceeded",
            "message": FULL,
            "param": None,
            "line": None,
        }
        return common | {
            "object": "batch",
            "errors": {"object": "list", "data": [error]} if said == "failed" else None,
            "completion_window": "24h",
            "status": server.word(said),
            "expires_at": server.time(batch.created + 86400),
            "completed_at": server.time(batch.ended) if said == "completed" else None,
            "request_counts": {name: server.count(value) for name, value in counts.items()},
            "metadata": batch.key,
        }

    async def create(self, request: web.Request) -> web.StreamResponse:
        server = self.server
        if server.take("refused_creates"):
            return _too_many()
        wanted = orjson.loads(await request.read())
        file = server.files.get(wanted["input_file_id"])
        if file is None:
            return not_found(f"No such File object: {wanted['input_file_id']}")
        if file.looks <= server.switches.slow_files:
            error = {"message": "The file is still being processed.", "code": "file_not_processed"}
            return reply({"error": error}, status=400)
        with file.path.open("rb") as lines:
            urls = {line.get("url") for line in map(orjson.loads, lines)}
        assert urls == {None if server.family == "together" else wanted["endpoint"]}, urls
        batch = server.create(
            _rows_of(file.path), key=wanted.get("metadata"), input_file=file.id, endpoint=wanted["endpoint"]
        )
        await server.after("create", request)
        shown = self.shown(batch)
        return reply({"job": shown, "warning": None} if server.family == "together" else shown)

    async def list(self, request: web.Request) -> web.StreamResponse:
        server = self.server
        if server.switches.no_batches:
            return not_found()
        server.requests["list"] += 1
        entries = [self.shown(batch) for batch in server.listed()]
        if server.family == "together":
            return reply(entries)
        page, more = _paged(server, request, entries)
        name = "value" if server.family == "azure" else "data"
        return reply({"object": "list", name: page, "has_more": more, "last_id": page[-1]["id"] if page else None})

    async def show(self, request: web.Request) -> web.StreamResponse:
        batch = self.server.batches.get(request.match_info["id"])
        if batch is None:
            return not_found()
        self.server.look(batch)
        await self.server.after("poll", request)
        return reply(self.shown(batch))

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        batch = self.server.batches.get(request.match_info["id"])
        if batch is None:
            return not_found()
        if not self.server.cancel(batch):
            return reply({"error": {"message": f"Cannot cancel a batch with status '{batch.said}'."}}, status=409)
        await self.server.after("cancel", request)
        return reply(self.shown(batch))


# ---- Mistral


class _MistralRoutes:
    def __init__(self, server: BatchServer, router: web.UrlDispatcher) -> None:
        self.server, self.files = server, _FilesRoutes(server, "/v1", router)
        router.add_post("/v1/batch/jobs", self.create)
        router.add_get("/v1/batch/jobs", self.list)
        router.add_get("/v1/batch/jobs/{id}", self.show)
        router.add_post("/v1/batch/jobs/{id}/cancel", self.cancel)
        router.add_post("/v1/chat/completions", server.chat)

    def shown(self, batch: Batch) -> dict[str, Any]:
        server = self.server
        words = {"completed": "SUCCESS", "failed": "FAILED", "expired": "TIMEOUT_EXCEEDED", "cancelled": "CANCELLED"}
        running = "CANCELLATION_REQUESTED" if batch.cancelling else "RUNNING" if batch.polls else "QUEUED"
        files = [file or None for file in [*batch.files, "", ""][:2]]
        return {
            "id": batch.id,
            "object": "batch",
            "input_files": [batch.input_file],
            "endpoint": batch.endpoint,
            "model": batch.model,
            "metadata": batch.key,
            "status": words.get(batch.said, running),
            "output_file": files[0],
            "error_file": files[1],
            "errors": [{"message": FULL, "count": 1}] if batch.said == "failed" else [],
            "created_at": server.time(batch.created),
            "total_requests": server.count(batch.total),
            "completed_requests": server.count(batch.done + batch.failed),
            "succeeded_requests": server.count(batch.done),
            "failed_requests": server.count(batch.failed),
        }

    async def create(self, request: web.Request) -> web.StreamResponse:
        server = self.server
        if server.take("refused_creates"):
            return _too_many()
        wanted = orjson.loads(await request.read())
        (file_id,) = wanted["input_files"]
        file = server.files.get(file_id)
        if file is None:
            return not_found()
        assert isinstance(wanted["timeout_hours"], int)
        batch = server.create(
            _rows_of(file.path),
            key=wanted.get("metadata"),
            input_file=file_id,
            endpoint=wanted["endpoint"],
            model=wanted["model"],
        )
        await server.after("create", request)
        return reply(self.shown(batch))

    async def list(self, request: web.Request) -> web.StreamResponse:
        if self.server.switches.no_batches:
            return not_found()
        self.server.requests["list"] += 1
        entries = [self.shown(batch) for batch in self.server.listed()]
        return reply({"object": "list", "data": _numbered(self.server, request, entries), "total": len(entries)})

    async def show(self, request: web.Request) -> web.StreamResponse:
        batch = self.server.batches.get(request.match_info["id"])
        if batch is None:
            return not_found()
        self.server.look(batch)
        await self.server.after("poll", request)
        return reply(self.shown(batch))

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        batch = self.server.batches[request.match_info["id"]]
        if not self.server.cancel(batch):
            return reply({"detail": "The job has ended."}, status=422)
        await self.server.after("cancel", request)
        return reply(self.shown(batch))


def _numbered(server: BatchServer, request: web.Request, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    size = min(int(request.query.get("page_size", 100)), server.switches.page)
    start = 0 if server.switches.one_page else int(request.query.get("page", 0)) * size
    return entries if server.switches.one_page else entries[start : start + size]


# ---- Anthropic


class _AnthropicRoutes:
    def __init__(self, server: BatchServer, router: web.UrlDispatcher) -> None:
        self.server = server
        base = "/v1/messages/batches"
        router.add_post(base, self.create)
        router.add_get(base, self.list)
        router.add_get(f"{base}/{{id}}", self.show)
        router.add_get(f"{base}/{{id}}/results", self.results)
        router.add_post(f"{base}/{{id}}/cancel", self.cancel)
        router.add_delete(f"{base}/{{id}}", self.delete)
        router.add_post("/v1/messages", server.chat)

    def shown(self, batch: Batch) -> dict[str, Any]:
        server = self.server
        remaining = batch.total - batch.done - batch.failed if batch.said else batch.total
        ending = {"expired": "expired", "cancelled": "canceled"}.get(batch.said, "")
        counts = {"processing": 0 if batch.said else batch.total, "succeeded": batch.done, "errored": batch.failed}
        counts |= dict.fromkeys(("canceled", "expired"), 0)
        if ending:
            counts[ending] = remaining
        elif batch.said:
            counts["errored"] += remaining
        is_gone = bool(batch.said) and server.switches.gone
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": "ended" if batch.said else "canceling" if batch.cancelling else "in_progress",
            "request_counts": {name: server.count(value) for name, value in counts.items()},
            "created_at": rfc(batch.created),
            "expires_at": rfc(batch.created + 86400),
            "ended_at": rfc(batch.ended) if batch.said else None,
            "cancel_initiated_at": None,
            "archived_at": rfc(server.now) if is_gone else None,
            "results_url": f"https://api.anthropic.com/v1/messages/batches/{batch.id}/results" if batch.said else None,
        }

    async def create(self, request: web.Request) -> web.StreamResponse:
        server = self.server
        assert request.headers["anthropic-version"] == "2023-06-01"
        if server.take("refused_creates"):
            error = {"type": "rate_limit_error", "message": "Batch requests in the processing queue exceed the limit"}
            return reply({"type": "error", "error": error}, status=429, headers={"Retry-After": "7"})
        wanted = orjson.loads(await request.read())
        rows = [(each["custom_id"], each["params"]) for each in wanted["requests"]]
        batch = server.create(rows)
        await server.after("create", request)
        return reply(self.shown(batch))

    async def list(self, request: web.Request) -> web.StreamResponse:
        if self.server.switches.no_batches:
            return not_found()
        self.server.requests["list"] += 1
        entries = [self.shown(batch) for batch in self.server.listed()]
        page, more = _paged(self.server, request, entries, "after_id")
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return reply({"data": page, "has_more": more, **ends})

    async def show(self, request: web.Request) -> web.StreamResponse:
        batch = self.server.batches.get(request.match_info["id"])
        if batch is None or batch.is_deleted:
            return not_found()
        self.server.look(batch)
        await self.server.after("poll", request)
        return reply(self.shown(batch))

    async def results(self, request: web.Request) -> web.StreamResponse:
        batch = self.server.batches.get(request.match_info["id"])
        file = self.server.files.get(batch.files[0]) if batch and batch.files else None
        return await self.server.download(request, file)

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        batch = self.server.batches[request.match_info["id"]]
        if not self.server.cancel(batch):
            error = {"type": "invalid_request_error", "message": "Batch has already ended."}
            return reply({"type": "error", "error": error}, status=400)
        await self.server.after("cancel", request)
        return reply(self.shown(batch))

    async def delete(self, request: web.Request) -> web.StreamResponse:
        batch = self.server.batches.get(request.match_info["id"])
        if batch is None or batch.is_deleted:
            return not_found()
        if not batch.said:
            return reply({"type": "error", "error": {"type": "invalid_request_error"}}, status=400)
        batch.is_deleted = True
        for file_id in batch.files:
            self.server.files.pop(file_id, None)
        return reply({"id": batch.id, "type": "message_batch_deleted"})


def rfc(value: float) -> str:
    """Return a time as Anthropic and Google write it."""
    return dt.datetime.fromtimestamp(value, dt.UTC).isoformat().replace("+00:00", "Z")


# ---- Gemini


class _GeminiRoutes:
    def __init__(self, server: BatchServer, router: web.UrlDispatcher) -> None:
        self.server = server
        router.add_post("/upload/v1beta/files", self.begin)
        router.add_post("/upload/{id:files/[^/]+}", self.receive)
        router.add_get("/v1beta/files", self.files)
        router.add_get("/v1beta/{id:files/[^/:]+}", self.file)
        router.add_delete("/v1beta/{id:files/[^/:]+}", self.delete)
        router.add_get("/download/v1beta/{id:files/[^/:]+}:download", self.download)
        router.add_post("/v1beta/models/{model}:batchGenerateContent", self.create)
        router.add_post("/v1beta/models/{model}:generateContent", server.chat)
        router.add_get("/v1beta/batches", self.list)
        router.add_get("/v1beta/{id:batches/[^/:]+}", self.show)
        router.add_post("/v1beta/{id:batches/[^/:]+}:cancel", self.cancel)

    def shown_file(self, file: StoredFile) -> dict[str, Any]:
        is_ready = file.looks > self.server.switches.slow_files or file.is_result
        return {
            "name": file.id,
            "displayName": file.name,
            "createTime": rfc(file.created),
            "sizeBytes": str(file.path.stat().st_size),
            "state": "ACTIVE" if is_ready else "PROCESSING",
        }

    async def begin(self, request: web.Request) -> web.StreamResponse:
        assert request.headers["X-Goog-Upload-Command"] == "start"
        wanted = orjson.loads(await request.read())
        place = f"http://127.0.0.1:{self.server.port}/upload/files/{wanted['file']['displayName']}"
        return web.Response(headers={"X-Goog-Upload-URL": place})

    async def receive(self, request: web.Request) -> web.StreamResponse:
        assert request.headers["X-Goog-Upload-Command"] == "upload, finalize"
        file = self.server.store(request.match_info["id"].removeprefix("files/"))
        await self.server.receive(file, request.content.iter_chunked(_BLOCK))
        file.looks = 1
        await self.server.after("upload", request)
        return reply({"file": self.shown_file(file)})

    async def files(self, request: web.Request) -> web.StreamResponse:
        if self.server.switches.no_batches:
            return not_found()
        found = [file for file in self.server.files.values() if self.server.is_listed(file.created)]
        return reply(_tokens(self.server, request, "files", [self.shown_file(file) for file in found]))

    async def file(self, request: web.Request) -> web.StreamResponse:
        file = self.server.files.get(request.match_info["id"])
        if file is None:
            return not_found()
        file.looks += 1
        return reply(self.shown_file(file))

    async def delete(self, request: web.Request) -> web.StreamResponse:
        if self.server.files.pop(request.match_info["id"], None) is None:
            return reply({"error": {"code": 404, "message": "not found", "status": "NOT_FOUND"}}, status=404)
        return reply({})

    async def download(self, request: web.Request) -> web.StreamResponse:
        assert request.query["alt"] == "media"
        return await self.server.download(request, self.server.files.get(request.match_info["id"]))

    def shown(self, batch: Batch) -> dict[str, Any]:
        words = {"completed": "SUCCEEDED", "failed": "FAILED", "expired": "EXPIRED", "cancelled": "CANCELLED"}
        prefix = "JOB_STATE_" if self.server.switches.capitals else "BATCH_STATE_"
        word = words.get(batch.said, "RUNNING" if batch.polls else "PENDING")
        has_file = batch.said and batch.said != "failed" and batch.files
        output = {"responsesFile": batch.files[0]} if has_file else {}
        counts = {
            "requestCount": str(batch.total),
            "successfulRequestCount": str(batch.done),
            "failedRequestCount": str(batch.failed),
        }
        shown: dict[str, Any] = {
            "name": batch.id,
            "metadata": {
                "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
                "displayName": batch.key,
                "state": prefix + word,
                "createTime": rfc(batch.created),
                "model": f"models/{batch.model}",
                "batchStats": {} if self.server.switches.null_counts else counts,
                "output": output,
            },
        }
        if batch.said:
            shown["done"] = True
            if batch.said == "failed":
                shown["error"] = {"code": 8, "message": "Enqueued tokens exceed the limit of the queue"}
            elif output:
                shown["response"] = output
        return shown

    async def create(self, request: web.Request) -> web.StreamResponse:
        server = self.server
        if server.take("refused_creates"):
            message = "You exceeded your current quota, please check your plan and billing details."
            return reply({"error": {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED"}}, status=429)
        wanted = orjson.loads(await request.read())["batch"]
        file = server.files.get(wanted["inputConfig"]["fileName"])
        if file is None or file.looks <= server.switches.slow_files:
            return not_found()
        rows = _rows_of(file.path, "request", "key")
        batch = server.create(rows, key=wanted["displayName"], input_file=file.id, model=request.match_info["model"])
        await server.after("create", request)
        return reply(self.shown(batch))

    async def list(self, request: web.Request) -> web.StreamResponse:
        if self.server.switches.no_batches:
            return not_found()
        self.server.requests["list"] += 1
        shown = [self.shown(batch) for batch in self.server.listed()]
        return reply(_tokens(self.server, request, "operations", shown))

    async def show(self, request: web.Request) -> web.StreamResponse:
        batch = self.server.batches.get(request.match_info["id"])
        if batch is None:
            return not_found()
        self.server.look(batch)
        await self.server.after("poll", request)
        return reply(self.shown(batch))

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        batch = self.server.batches[request.match_info["id"]]
        if not self.server.cancel(batch):
            return reply({"error": {"code": 400, "status": "FAILED_PRECONDITION"}}, status=400)
        await self.server.after("cancel", request)
        return web.Response()


def _tokens(server: BatchServer, request: web.Request, field_name: str, entries: list[Any]) -> dict[str, Any]:
    """Return a page of entries with the token of the next one, in Google's way."""
    size = min(int(request.query["pageSize"]), server.switches.page)
    start = int(request.query.get("pageToken", 0))
    page: dict[str, Any] = {field_name: entries[start : start + size]}
    if start + size < len(entries):
        page["nextPageToken"] = str(start + size)
    return page


# ---- OpenRouter


class _OpenRouterRoutes:
    def __init__(self, server: BatchServer, router: web.UrlDispatcher) -> None:
        self.server = server
        router.add_post("/api/v1/batches", self.create)
        router.add_get("/api/v1/batches", self.list)
        router.add_get("/api/v1/batches/{id}", self.show)
        router.add_delete("/api/v1/batches/{id}", self.delete)
        router.add_post("/api/v1/chat/completions", server.chat)

    def shown(self, batch: Batch) -> dict[str, Any]:
        counts = {"total": batch.total, "completed": batch.done, "failed": batch.failed}
        return {
            "id": batch.id,
            "object": "batch",
            "status": self.server.word(batch.said or ("in_progress" if batch.polls else "validating")),
            "created_at": self.server.time(batch.created),
            "expires_at": self.server.time(batch.created + 86400),
            "request_counts": {name: self.server.count(value) for name, value in counts.items()},
            "error": {"message": FULL} if batch.said == "failed" else None,
            "results": None,
        }

    async def create(self, request: web.Request) -> web.StreamResponse:
        server = self.server
        if server.take("refused_creates"):
            return _too_many()
        wanted = orjson.loads(await request.read())
        assert wanted["endpoint"] == "/v1/chat/completions"
        batch = server.create([(each["custom_id"], each["body"]) for each in wanted["requests"]], model=wanted["model"])
        await server.after("create", request)
        return reply(self.shown(batch), status=202)

    async def list(self, request: web.Request) -> web.StreamResponse:
        if self.server.switches.no_batches:
            return not_found()
        self.server.requests["list"] += 1
        page, more = _paged(self.server, request, [self.shown(batch) for batch in self.server.listed()])
        return reply({"object": "list", "data": page, "has_more": more, "last_id": page[-1]["id"] if page else None})

    async def show(self, request: web.Request) -> web.StreamResponse:
        batch = self.server.batches.get(request.match_info["id"])
        if batch is None or batch.is_deleted:
            return not_found()
        was_over = bool(batch.said)
        self.server.look(batch)
        await self.server.after("poll", request)
        shown = self.shown(batch)
        file = self.server.files.get(batch.files[0]) if batch.files else None
        if file is not None:
            if self.server.switches.gone and was_over:
                return not_found()
            shown["results"] = [orjson.loads(line) for line in file.path.read_bytes().splitlines()]
            batch.was_read = was_over
        return reply(shown)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        batch = self.server.batches.get(request.match_info["id"])
        if batch is None or batch.is_deleted:
            return not_found()
        if not batch.said:
            return reply({"error": {"code": 409, "message": "The batch is running."}}, status=409)
        batch.is_deleted = True
        for file_id in batch.files:
            self.server.files.pop(file_id, None)
        return reply({"id": batch.id, "object": "batch", "deletion": {"openrouter": "deleted"}})


# ---- Fireworks


class _FireworksRoutes:
    def __init__(self, server: BatchServer, router: web.UrlDispatcher) -> None:
        self.server = server
        self.datasets: dict[str, StoredFile | None] = {}
        base = "/v1/accounts/test"
        router.add_get("/v1/accounts", self.accounts)
        router.add_post(f"{base}/datasets", self.begin)
        router.add_post(f"{base}/datasets/{{id:[^/:]+}}:upload", self.upload)
        router.add_get(f"{base}/datasets/{{id:[^/:]+}}", self.dataset)
        router.add_get(f"{base}/datasets/{{id:[^/:]+}}:getDownloadEndpoint", self.addresses)
        router.add_delete(f"{base}/datasets/{{id:[^/:]+}}", self.delete)
        router.add_get("/upload/signed/{id}", self.download)
        router.add_post(f"{base}/batchInferenceJobs", self.create)
        router.add_get(f"{base}/batchInferenceJobs", self.list)
        router.add_get(f"{base}/batchInferenceJobs/{{id}}", self.show)
        router.add_post("/inference/v1/chat/completions", server.chat)

    async def accounts(self, _: web.Request) -> web.StreamResponse:
        return not_found() if self.server.switches.no_batches else reply({"accounts": [{"name": "accounts/test"}]})

    async def begin(self, request: web.Request) -> web.StreamResponse:
        name = orjson.loads(await request.read())["datasetId"]
        if name in self.datasets:
            return reply({"code": 6, "message": "dataset already exists"}, status=409)
        self.datasets[name] = None
        return reply({"name": f"accounts/test/datasets/{name}", "state": "UPLOADING"})

    async def upload(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["id"]
        file = self.server.store(name)
        async for part in _parts(request):
            await self.server.receive(file, _pieces(part))
        self.datasets[name] = file
        await self.server.after("upload", request)
        return reply({})

    async def dataset(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["id"]
        if name not in self.datasets:
            return not_found()
        return reply(
            {"name": f"accounts/test/datasets/{name}", "state": "READY" if self.datasets[name] else "UPLOADING"}
        )

    async def delete(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["id"]
        batch = self.server.batches.get(f"accounts/test/batchInferenceJobs/{name.removesuffix('-out')}")
        is_output = name.endswith("-out") and batch is not None
        files = batch.files if is_output and batch is not None else []
        if file := self.datasets.pop(name, None):
            files = [file.id]
        for file_id in files:
            self.server.files.pop(file_id, None)
        return reply({}) if files else not_found()

    async def addresses(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["id"].removesuffix("-out")
        batch = self.server.batches[f"accounts/test/batchInferenceJobs/{name}"]
        if self.server.switches.gone:
            return not_found()
        root = f"http://localhost:{self.server.port}/upload/signed"
        return reply({"filenameToSignedUrls": {file: f"{root}/{file}" for file in batch.files if file}})

    async def download(self, request: web.Request) -> web.StreamResponse:
        self.server.leaked += "authorization" in {*map(str.lower, request.headers)}
        return await self.server.download(request, self.server.files.get(request.match_info["id"]))

    def shown(self, batch: Batch) -> dict[str, Any]:
        prefix = "JOB_STATE_"
        status = {"code": "RESOURCE_EXHAUSTED", "message": FULL} if batch.said == "failed" else {"code": "OK"}
        return {
            "name": batch.id,
            "displayName": batch.key,
            "state": prefix + (batch.said or ("running" if batch.polls else "validating")).upper(),
            "createTime": rfc(batch.created),
            "inputDatasetId": batch.input_file,
            "outputDatasetId": batch.endpoint,
            "status": status,
            "jobProgress": {
                "totalInputRequests": self.server.count(batch.total),
                "successfullyProcessedRequests": self.server.count(batch.done),
                "failedRequests": self.server.count(batch.failed),
            },
        }

    async def create(self, request: web.Request) -> web.StreamResponse:
        server = self.server
        if server.take("refused_creates"):
            return _too_many()
        wanted = orjson.loads(await request.read())
        name = f"accounts/test/batchInferenceJobs/{request.query['batchInferenceJobId']}"
        if name in server.batches:
            return reply({"code": 6, "message": "job already exists"}, status=409)
        file = self.datasets.get(wanted["inputDatasetId"].removeprefix("accounts/test/datasets/"))
        if file is None:
            return not_found()
        batch = server.create(
            _rows_of(file.path),
            key=wanted["displayName"],
            input_file=wanted["inputDatasetId"],
            endpoint=wanted["outputDatasetId"],
            model=wanted["model"],
            name=name,
        )
        await server.after("create", request)
        return reply(self.shown(batch))

    async def list(self, _: web.Request) -> web.StreamResponse:
        return reply({"batchInferenceJobs": [self.shown(batch) for batch in self.server.listed()]})

    async def show(self, request: web.Request) -> web.StreamResponse:
        batch = self.server.batches.get(f"accounts/test/batchInferenceJobs/{request.match_info['id']}")
        if batch is None:
            return not_found()
        self.server.look(batch)
        await self.server.after("poll", request)
        return reply(self.shown(batch))


async def _parts(request: web.Request) -> AsyncIterator[BodyPartReader]:
    async for part in await request.multipart():
        assert isinstance(part, BodyPartReader)
        yield part


_ROUTES: dict[str, Callable[[BatchServer, web.UrlDispatcher], object]] = {
    **dict.fromkeys(("openai", "azure", "together"), _OpenAIRoutes),
    "mistral": _MistralRoutes,
    "anthropic": _AnthropicRoutes,
    "gemini": _GeminiRoutes,
    "openrouter": _OpenRouterRoutes,
    "fireworks": _FireworksRoutes,
}


def _arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A provider with a Batch API, on loopback.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--family", choices=FAMILIES, default="openai")
    parser.add_argument("--switch", action="append", default=[], metavar="NAME[=VALUE]")
    return parser.parse_args(given)


def _switches(given: list[str]) -> Iterator[tuple[str, str]]:
    for text in given:
        name, _, value = text.partition("=")
        yield name, value or "1"


async def _serve(arguments: argparse.Namespace) -> None:
    server = BatchServer(arguments.family, port=arguments.port, **dict(_switches(arguments.switch)))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        await server.start()
        print(server.base_url, flush=True)
        await asyncio.Event().wait()
    finally:
        shutil.rmtree(server.folder, ignore_errors=True)


if __name__ == "__main__":
    asyncio.run(_serve(_arguments(sys.argv[1:])))
