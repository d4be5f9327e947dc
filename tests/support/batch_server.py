"""A loopback provider with a Batch API, which answers, bills and misbehaves as OpenAI, Azure, Anthropic and others.

    with BatchServer("openai", shuffled=True, lost_creates=1) as server:    # a thread with an event loop of its own
        ...                                                                 # batches and chats at server.base_url
        assert set(server.billed.values()) == {1}

What a provider takes and sends is in `batch_exchanges.jsonl`. A row with `do` is an exchange: a `request`, the method
of `BatchServer` that carries it out, and the `reply`. A row with `name` is the record of a file or of a batch, a line
of requests or results, an answer, or a refusal; `batch STATE` or `batch ended` replaces fields of `batch`. `$NAME` is a
value: taken from a request, filled in elsewhere. A request that differs from its row in anything else fails the test. A
field `NAME?` is left out if it has no value.

A request is answered with a text that follows from its prompt (`answer_to`), live or by batch, as a chat completion or
a response; one for embeddings, with vectors that follow from its texts (`embedding.vector`). The server counts how
often each prompt was billed, and knows which files still exist and which results were never read. Its clock is set
forward by `advance`. `Switches` lists the faults.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import itertools
import random
import re
import shutil
import tempfile
import threading
import time
import zlib
from array import array
from base64 import b64encode
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from embedding import vector
from waiting import PATIENCE_S

_ROWS = [orjson.loads(line) for line in Path(__file__).with_name("batch_exchanges.jsonl").read_bytes().splitlines()]
_NAME = re.compile(r"\$(\w+)")
_INPUT = "input"
"""The field with the texts of a request for embeddings, or with the turns of one for a response."""


@dataclass(slots=True)
class Switches:
    """The faults of a provider. Those that count something happen so often, then no more."""

    polls: int = 1  # looks at a batch until it ends
    duration_s: float = 0.0  # the shortest time until it ends, on the server's clock
    list_lag_s: float = 0.0  # the time until a new batch or file appears in lists
    shuffled: bool = False  # results come in any order
    missing: int = 0  # every so many requests, one appears in no result; it is not billed
    errors: int = 0  # every so many requests, one fails, in the two shapes in turn; it is not billed
    empty_errors: bool = False  # a completed batch has an error file without lines
    damaged: int = 0  # every so many results, one is cut in the middle of its line
    duplicates: int = 0  # every so many results, one comes a second time with another text
    retried: int = 0  # every so many results, one comes after an error of the same request
    capitals: bool = False  # states are capitalized
    page: int = 100  # the longest page of a list
    one_page: bool = False  # lists have one page, whatever is asked for
    iso_times: bool = False
    null_counts: bool = False
    text_counts: bool = False
    finished: float = 1.0  # the part that is answered when the batch expires; 1: it does not expire
    cancelled: float = 0.5  # the part that is answered when a running batch is cancelled
    full: int = 0  # batches that fail after they were created, because the queue is full
    refused_creates: int = 0  # creations answered with 429
    lost_creates: int = 0  # creations that are carried out, but whose answer is lost
    lost_uploads: int = 0
    lost_by: str = "close"  # how answers are lost: `close` ends the connection, a number is a status
    cut_downloads: int = 0  # downloads that end in the middle
    flaky: int = 0  # requests that only read, answered with 503 or 429
    slow_files: int = 0  # looks at an uploaded file until it is processed
    gone: bool = False  # results are no longer kept
    no_batches: bool = False  # the provider has no Batch API
    choices: str = ""  # answers are one of these, separated by commas
    held: str = ""
    """Requests of this kind are carried out but answered only once the client is gone: `upload`, `create`, `poll`,
    `cancel`, `download` (half of it is sent), `live`. It happens once."""

    def set(self, values: dict[str, Any]) -> None:
        """Change some."""
        for name, value in values.items():
            setattr(self, name, value)


@dataclass(slots=True)
class StoredFile:
    """An uploaded file or a file of results; without content until it is uploaded."""

    id: str
    name: str
    created: float
    path: Path
    batch: Batch | None = None
    looks: int = 0


@dataclass(slots=True)
class Batch:
    """A batch at the provider."""

    id: str
    created: float
    rows: list[tuple[str, dict[str, Any]]]
    total: int
    values: dict[str, Any]
    """What the request that created it had at the names of its row."""
    polls: int = 0
    said: str = ""
    """The final state; empty while it runs."""
    cancelling: bool = False
    done: int = 0
    failed: int = 0
    ended: float = 0.0
    files: list[str] = field(default_factory=lambda: ["", ""])
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
    """Return the text of the last user turn of a request in any dialect, or the first text to embed."""
    if _is_for_vectors(body):
        return str(body[_INPUT][0])
    for turn in reversed(body.get("contents") or body.get(_INPUT) or body["messages"]):
        if turn.get("role", "user") == "user":
            content = turn.get("parts") or turn.get("content") or ""
            return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return ""


def filled(template: Any, values: dict[str, Any]) -> Any:
    """Return a template with values, or what functions among them return, in the places of their names."""
    if isinstance(template, dict):
        fields = {name: filled(inner, values) for name, inner in template.items()}
        return {name.rstrip("?"): value for name, value in fields.items() if value is not None or name[-1] != "?"}
    if isinstance(template, list):
        return [filled(inner, values) for inner in template]
    if not isinstance(template, str):
        return template
    if _NAME.fullmatch(template):
        value = values[template[1:]]
        return value() if callable(value) else value
    return _NAME.sub(lambda found: str(values[found[1]]), template)


def taken(pattern: Any, value: Any) -> dict[str, Any]:
    """Return what a request has at the names of its pattern. Fails if it differs elsewhere."""
    if isinstance(pattern, dict):
        assert value.keys() == pattern.keys(), (pattern, value)
        found = [taken(inner, value[name]) for name, inner in pattern.items()]
        return {name: each for values in found for name, each in values.items()}
    if isinstance(pattern, list):
        assert len(value) == len(pattern), (pattern, value)
        return taken(dict(enumerate(pattern)), dict(enumerate(value)))
    if not isinstance(pattern, str) or "$" not in pattern:
        assert value == pattern, (pattern, value)
        return {}
    before, _, name = pattern.partition("$")
    assert not before or value.startswith(before), (pattern, value)
    return {name: value[len(before) :] if before else value}


class _LostError(Exception):
    """The request was carried out, its answer is lost."""


class _RefusedError(Exception):
    """The request is refused with the reply of this name."""


class BatchServer:
    """One provider. Read `billed`, `files`, `batches`, `creates`, `live` at any time; set `switches`."""

    def __init__(self, family: str = "openai", **switches: Any) -> None:
        self.family = family
        rows = [row for row in _ROWS if family in row["provider"]]
        self._named = {row["name"]: row for row in rows if "name" in row}
        self._about = self._named["about"]
        self._exchanges = [row for row in rows if "do" in row]
        self.switches = Switches(**self._about.get("switches", {}) | switches)
        self.files: dict[str, StoredFile] = {}
        self.batches: dict[str, Batch] = {}
        self.billed: Counter[str] = Counter()
        """How often each prompt was billed, live and by batch."""
        self.tokens: Counter[str] = Counter()
        """Billed tokens: `batch_prompt`, `batch_answer`, `live_prompt`, `live_answer`."""
        self.creates = self.uploads = self.live = 0
        """Requests that were carried out."""
        self.requests: Counter[str] = Counter()
        """Requests that were carried out, by what they do."""
        self.keyless = 0
        """Requests without the provider's own header for the key."""
        self.accepts: Callable[[dict[str, str]], bool] = lambda headers: True
        """Whether it accepts the key in the headers of a request."""
        self.leaked = 0
        """Requests to another origin that carried the key."""
        self.unexpected: list[AssertionError] = []
        """Requests that differ from their rows."""
        self.answers: Callable[[dict[str, Any]], str | None] = lambda body: answer_to(
            prompt_of(body), self.switches.choices
        )
        """Returns the answer to the body of a request; None: the request is refused as too long."""
        self.offset_s = 0.0
        self._folder = Path(tempfile.mkdtemp(prefix="batches-"))
        self._ids = itertools.count(1)
        self._rng = random.Random(1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="batch server", daemon=True)

    def __enter__(self) -> BatchServer:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        assert not self.unexpected, self.unexpected

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 30, middlewares=[self._around])
        for exchange in self._exchanges:
            method, path = exchange["request"]["path"].replace("$base", self._about["base"]).split()
            app.router.add_route(method, path, functools.partial(self._answer, exchange))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024).start()
        self.port: int = self._runner.addresses[0][1]
        self.base_url = f"http://127.0.0.1:{self.port}{self._about['base']}"

    @property
    def now(self) -> float:
        """The time of the server's clock."""
        return time.time() + self.offset_s

    def advance(self, seconds: float) -> None:
        """Set the clock forward."""
        self.offset_s += seconds

    def left_files(self) -> list[str]:
        """Return the names of the files that still exist."""
        keeps = self._about.get("keeps_results", False)  # the provider's own, which are no files
        return [file.name for file in list(self.files.values()) if not (keeps and file.batch)]

    def never_read(self) -> list[str]:
        """Return the ids of batches whose results were billed, but never read to their end."""
        return [batch.id for batch in list(self.batches.values()) if batch.done and not batch.was_read]

    def running(self) -> list[str]:
        """Return the ids of batches that have not ended."""
        return [batch.id for batch in list(self.batches.values()) if not batch.said]

    # requests

    @web.middleware
    async def _around(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.host.startswith("localhost"):  # the other origin
            self.leaked += "authorization" in request.headers
        elif not any(name in request.headers for name in self._about["key"]):
            self.keyless += 1
        elif not self.accepts(dict(request.headers)):
            return web.Response(status=401, text="the token has expired")
        try:
            if request.method == "GET" and self._take("flaky"):
                status = 429 if self.switches.flaky % 2 else 503
                return web.Response(status=status, text="overloaded, try again", headers={"Retry-After": "0"})
            return await handler(request)
        except _RefusedError as refused:
            return _response(self._named[str(refused)], {})
        except _LostError:
            if self.switches.lost_by.isdigit():
                return web.Response(status=int(self.switches.lost_by), text="<html>Bad Gateway</html>")
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        except AssertionError as error:
            self.unexpected.append(error)
            raise

    async def _answer(self, exchange: dict[str, Any], request: web.Request) -> web.StreamResponse:
        """Take the values of a request, do what its row says, and fill in the reply."""
        wanted, do = exchange["request"], exchange["do"]
        values: dict[str, Any] = {"port": self.port, "exchange": exchange, "query": request.query, **request.match_info}
        for part, sent in (("headers", request.headers), ("query", request.query)):
            patterns = wanted.get(part, {})
            values |= taken(patterns, {name: sent.get(name) for name in patterns})
        if "form" in wanted:
            form = await request.post()
            values |= taken(wanted["form"], {name: getattr(part, "filename", part) for name, part in form.items()})
            values["content"] = form["file"].file.read() if "file" in form else b""  # type: ignore[union-attr]
        else:
            values["content"] = await request.read()
            values |= taken(wanted["body"], orjson.loads(values["content"])) if "body" in wanted else {}
        if self.switches.no_batches and do in {"account", "list", "files", "begin"}:
            raise _RefusedError("missing")
        if do == "download":
            return await self._download(request, values)
        values |= getattr(self, f"_{do}")(values) or {}
        self.requests[do] += 1
        if self._is_held(do):
            await _until_gone(request)
            raise _LostError
        if do in {"create", "upload"} and self._take(f"lost_{do}s"):
            raise _LostError
        return _response(exchange["reply"], values)

    def _take(self, name: str) -> bool:
        """Return whether a fault that is counted happens now."""
        remaining: int = getattr(self.switches, name)
        if remaining > 0:
            setattr(self.switches, name, remaining - 1)
        return remaining > 0

    def _is_held(self, do: str) -> bool:
        """Return whether the answer to this request is held, once."""
        is_held = self.switches.held == do
        if is_held:
            self.switches.held = ""
        return is_held

    def _page(self, values: dict[str, Any], ids: list[str], records: list[Any]) -> dict[str, Any]:
        """Return the values of a page: after an id, or with a number."""
        size_name, start_name = values["exchange"]["page"]
        size = min(int(values["query"].get(size_name, 20)), self.switches.page)
        after = values["query"].get(start_name, "")
        start = ids.index(after) + 1 if after in ids else size * int(after) if after.isdigit() else 0
        part, more = slice(start, start + size), start + size < len(records)
        if self.switches.one_page:
            part, more = slice(None), True
        first, last = (ids[part][0], ids[part][-1]) if ids[part] else (None, None)
        shown = {"page": records[part], "all": records, "length": len(records)}
        return shown | {"first": first, "last": last, "next": last if more else None, "more": more}

    def _listed(self, stored: Sequence[Any]) -> list[Any]:
        """Return the files or batches that lists already have, in the provider's order."""
        seen = [each for each in stored if self.now >= each.created + self.switches.list_lag_s]
        return seen if self._about.get("oldest_first") else seen[::-1]

    def _filled(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """Return the body of the row with this name."""
        body: dict[str, Any] = filled(self._named[name]["body"], values)
        return body

    def _time(self, value: float) -> Any:
        """Return a time as the provider writes it."""
        text = dt.datetime.fromtimestamp(value, dt.UTC).isoformat()
        if self.switches.iso_times:
            return text.replace("+00:00", "1+00:00")  # seven digits
        return text.replace("+00:00", "Z") if self._about.get("rfc_times") else int(value)

    def _state(self, word: str) -> str:
        """Return a state of a batch or file as the provider writes it."""
        state: str = self._about.get("states", {}).get(word, word)
        return state.capitalize() if self.switches.capitals else state

    def _count(self, value: int) -> Any:
        """Return a count, or null, or a text."""
        return None if self.switches.null_counts else str(value) if self.switches.text_counts else value

    # files

    def _store(self, name: str, file_id: str = "", batch: Batch | None = None) -> StoredFile:
        """Return a new file without content."""
        file_id = file_id or f"{self._about['ids'][0]}{next(self._ids):06d}"
        if file_id in self.files:
            raise _RefusedError("exists")
        self.files[file_id] = StoredFile(file_id, name, self.now, self._folder / file_id.replace("/", "-"), batch)
        return self.files[file_id]

    def _file_record(self, file: StoredFile) -> dict[str, Any]:
        is_ready = file.path.exists() and (file.batch is not None or file.looks > self.switches.slow_files)
        size = file.path.stat().st_size if file.path.exists() else 0
        values = {"file": file.id, "name": file.name, "bytes": str(size) if self.switches.text_counts else size}
        values |= {"purpose": "batch_output" if file.batch else "batch", "created": self._time(file.created)}
        return self._filled("file", values | {"state": self._state("processed" if is_ready else "pending")})

    def _known_file(self, values: dict[str, Any]) -> StoredFile:
        if values["file"] not in self.files:
            raise _RefusedError("missing")
        return self.files[values["file"]]

    def _begin(self, values: dict[str, Any]) -> dict[str, Any]:
        file = self._store(values.get("name") or values["file"], values.get("file", ""))
        return {"file": file.id, "record": self._file_record(file)}

    def _upload(self, values: dict[str, Any]) -> dict[str, Any]:
        file = self._known_file(values) if "file" in values else self._store(values["name"])
        file.path.write_bytes(values["content"])
        file.looks = values["exchange"].get("looks", 1)
        self.uploads += 1
        return {"record": self._file_record(file)}

    def _file(self, values: dict[str, Any]) -> dict[str, Any]:
        file = self._known_file(values)
        file.looks += 1
        return {"record": self._file_record(file)}

    def _files(self, values: dict[str, Any]) -> dict[str, Any]:
        keeps = self._about.get("keeps_results", False)
        files = self._listed([file for file in self.files.values() if not (keeps and file.batch)])
        return self._page(values, [file.id for file in files], [*map(self._file_record, files)])

    def _delete_file(self, values: dict[str, Any]) -> None:
        del self.files[self._known_file(values).id]

    async def _download(self, request: web.Request, values: dict[str, Any]) -> web.StreamResponse:
        """Send a file, or only a half of it."""
        self.requests["download"] += 1
        file = self.files.get(values["file"] if "file" in values else self._known(values).files[0])
        if file is None or (self.switches.gone and file.batch):
            raise _RefusedError("missing")
        content = file.path.read_bytes()
        is_held = bool(content) and self._is_held("download")
        is_cut = is_held or (bool(content) and self._take("cut_downloads"))
        response = web.StreamResponse(headers={"Content-Length": str(len(content))})
        await response.prepare(request)
        await response.write(content[: len(content) // 2] if is_cut else content)
        if is_held:
            await _until_gone(request)
        elif is_cut:
            assert request.transport is not None
            request.transport.close()
        else:
            await response.write_eof()
            if file.batch and file.id == file.batch.files[0]:
                file.batch.was_read = True
        return response

    def _addresses(self, values: dict[str, Any]) -> dict[str, Any]:
        if self.switches.gone:
            raise _RefusedError("missing")
        root = f"http://localhost:{self.port}/upload/signed"
        return {"addresses": {file: f"{root}/{file}" for file in self._known(values).files if file}}

    # batches

    def _known(self, values: dict[str, Any]) -> Batch:
        """Return the batch with the id, or the name of its output, in a request."""
        name = "batch" if "batch" in values else "output"
        for batch in self.batches.values():
            if batch.values.get(name) == values[name] and not batch.is_deleted:
                return batch
        raise _RefusedError("missing")

    def _record(self, batch: Batch, *, with_results: bool = True) -> dict[str, Any]:
        said = batch.said
        rest = batch.total - batch.done - batch.failed if said else 0
        counts = {"total": batch.total, "done": batch.done, "failed": batch.failed, "over": batch.done + batch.failed}
        counts |= {"processing": 0 if said else batch.total, "expired": 0, "cancelled": 0}
        counts["errored"] = batch.failed + (0 if said in {"expired", "cancelled"} else rest)
        counts |= {said: rest} if said in {"expired", "cancelled"} else {}
        running = "cancelling" if batch.cancelling else "in_progress" if batch.polls else "validating"
        values = batch.values | {"state": self._state(said or running)}
        values |= {name: self._count(value) for name, value in counts.items()}
        values |= {"created": self._time(batch.created), "expires": self._time(batch.created + 86400)}
        values |= {"output_file": batch.files[0] or None, "error_file": batch.files[1] or None}
        values |= {"ended": self._time(batch.ended), "results": lambda: self._results(batch) if with_results else None}
        later = [name for name in ("batch ended", f"batch {said}") if said and name in self._named]
        return self._filled("batch", values) | (self._filled(later[-1], values) if later else {})

    def _results(self, batch: Batch) -> list[Any] | None:
        file = self.files.get(batch.files[0])
        return None if file is None else [orjson.loads(line) for line in file.path.read_bytes().splitlines()]

    def create(self, rows: list[tuple[str, dict[str, Any]]], **known: Any) -> Batch:
        """Return a new batch, with the id that the client chose, if any."""
        batch_id = f"{self._about['ids'][1]}{known.get('id') or format(next(self._ids), '06d')}"
        if batch_id in self.batches:
            raise _RefusedError("exists")
        batch = self.batches[batch_id] = Batch(batch_id, self.now, rows, len(rows), known | {"batch": batch_id})
        self.creates += 1
        if self._take("full"):
            batch.said, batch.ended = "failed", self.now
        return batch

    def _create(self, values: dict[str, Any]) -> dict[str, Any]:
        if self._take("refused_creates"):
            raise _RefusedError("busy")
        if "rows" in values:
            lines = values.pop("rows")
        else:
            file = self._known_file(values)
            if file.looks <= self.switches.slow_files:
                raise _RefusedError("unprocessed")
            lines = map(orjson.loads, file.path.read_bytes().splitlines())
        rows = [taken(self._named["line"]["body"], line) for line in lines]
        for row in rows:
            path = _path_of(row["body"])
            assert {row.get("endpoint", path), values.get("endpoint", path)} == {path}, row
        names = ("id", "key", "file", "model", "output", "endpoint")
        known = {name: values[name] for name in names if name in values}
        batch = self.create([(row["custom_id"], row["body"]) for row in rows], **known)
        return {"record": self._record(batch)}

    def _read(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return a page of a batch's results."""
        batch = self._known(values)
        if self.switches.gone or batch.files[0] not in self.files:
            raise _RefusedError("missing")
        self.requests["download"] += 1
        records = self._results(batch) or []
        page = self._page(values, [f"r{number}" for number in range(len(records))], records)
        batch.was_read = batch.was_read or not page["next"]
        return page

    def _list(self, values: dict[str, Any]) -> dict[str, Any]:
        batches = self._listed([batch for batch in self.batches.values() if not batch.is_deleted])
        records = [self._record(batch, with_results=False) for batch in batches]
        return self._page(values, [batch.id for batch in batches], records)

    def _poll(self, values: dict[str, Any]) -> dict[str, Any]:
        batch = self._known(values)
        if batch.said and "results" in self._named["batch"]["body"]:
            if self.switches.gone:
                raise _RefusedError("missing")
            batch.was_read = True
        self.look(batch)
        return {"record": self._record(batch)}

    def look(self, batch: Batch) -> None:
        """Let a batch progress: its state is asked for."""
        batch.polls += 1
        if batch.said:
            return
        if batch.cancelling:
            self._finish(batch, "cancelled", self.switches.cancelled)
        elif batch.polls > self.switches.polls and self.now >= batch.created + self.switches.duration_s:
            self._finish(batch, "expired" if self.switches.finished < 1 else "completed", self.switches.finished)

    def _cancel(self, values: dict[str, Any]) -> dict[str, Any]:
        batch = self._known(values)
        if batch.said:
            raise _RefusedError("over")
        batch.cancelling = True  # it ends at the next look
        return {"record": self._record(batch)}

    def _delete(self, values: dict[str, Any]) -> None:
        batch = self._known(values)
        if not batch.said:
            raise _RefusedError("running")
        batch.is_deleted = True
        for file_id in batch.files:
            self.files.pop(file_id, None)

    def _finish(self, batch: Batch, said: str, part: float) -> None:
        """Answer the first part of a batch and bill it; write the results."""
        lines: list[bytes] = []
        errors: list[bytes] = []
        finished = round(len(batch.rows) * part)
        for number, (custom_id, body) in enumerate(batch.rows, 1):
            if number > finished:
                errors += self._result(said, custom_id)
            elif _is_each(self.switches.missing, number):
                continue
            elif _is_each(self.switches.errors, number):
                batch.failed += 1
                errors += self._result("error" if number // self.switches.errors % 2 else "bare error", custom_id)
            elif (answer := self.answers(body)) is None:
                batch.failed += 1
                errors += self._result("too long", custom_id)
            else:
                batch.done += 1
                self._bill(body, answer, "batch")
                (line,) = self._result("answer", custom_id, self._body(body, answer, "batch"))
                if _is_each(self.switches.retried, number):
                    lines += self._result("error", custom_id)
                are_lines = "results" not in self._named["batch"]["body"] and "keeps_results" not in self._about
                is_cut = _is_each(self.switches.damaged, number) and are_lines
                lines.append(line[: len(line) // 2] if is_cut else line)
                if _is_each(self.switches.duplicates, number):
                    lines += self._result("answer", custom_id, self._body(body, f"second {answer}", "batch"))
        is_one_file = self._about.get("one_file", False)
        if is_one_file:
            lines, errors = lines + errors, []
        if self.switches.shuffled:
            self._rng.shuffle(lines)
        batch.said, batch.ended, batch.rows = said, self.now, []
        is_written = [bool(lines) or is_one_file, bool(errors) or self.switches.empty_errors]
        for index, content in enumerate((lines, errors)):
            if is_written[index]:
                name = f"{batch.id}_{('output', 'error')[index]}.jsonl".replace("/", "-")
                file = self._store(name, batch=batch)
                file.path.write_bytes(b"".join(line + b"\n" for line in content))
                batch.files[index] = file.id

    def _result(self, kind: str, custom_id: str, answered: Any = None) -> list[bytes]:
        """Return the line of a result; no line if the provider has none of this kind."""
        name, values = f"result {kind}", {"custom_id": custom_id, "answered": answered}
        return [orjson.dumps(self._filled(name, values))] if name in self._named else []

    def _body(self, body: dict[str, Any], answer: str, tier: str) -> dict[str, Any]:
        """Return the body of an answer."""
        asked, said = sum(len(prompt.split()) for prompt in _prompts(body)), len(answer.split())
        values = {"answer": answer, "prompt_tokens": asked, "answer_tokens": said, "all_tokens": asked + said}
        values |= {"model": body.get("model", "m"), "tier": tier}
        if not _is_for_vectors(body):
            return self._filled("response" if _INPUT in body else "answer", values)
        is_text = body.get("encoding_format") == "base64"
        vectors = [vector(text) for text in body[_INPUT]]
        shown = [b64encode(array("f", each).tobytes()).decode() if is_text else each for each in vectors]
        data = [{"object": "embedding", "index": at, "embedding": each} for at, each in enumerate(shown)]
        return self._filled("vectors", values | {"data": data})

    def _bill(self, body: dict[str, Any], answer: str, way: str) -> None:
        """Count a billed answer."""
        for prompt in _prompts(body):
            self.billed[prompt] += 1
            self.tokens[f"{way}_prompt"] += len(prompt.split())
        self.tokens[f"{way}_answer"] += 0 if _is_for_vectors(body) else len(answer.split())

    def _live(self, values: dict[str, Any]) -> dict[str, Any]:
        answer = self.answers(values["body"])
        if answer is None:
            raise _RefusedError("too long")
        self.live += 1
        self._bill(values["body"], answer, "live")
        return {"answered": self._body(values["body"], answer, "standard")}

    def _account(self, _: dict[str, Any]) -> None:
        """Nothing: the reply is always the same."""


def _is_for_vectors(body: dict[str, Any]) -> bool:
    return _INPUT in body and isinstance(body[_INPUT][0], str)


def _path_of(body: dict[str, Any]) -> str:
    """Return the path of a request, as a batch names it."""
    if _is_for_vectors(body):
        return "/v1/embeddings"
    return "/v1/responses" if _INPUT in body else "/v1/chat/completions"


def _prompts(body: dict[str, Any]) -> list[str]:
    return body[_INPUT] if _is_for_vectors(body) else [prompt_of(body)]


def _is_each(every: int, number: int) -> bool:
    return every > 0 and number % every == 0


def _response(reply: dict[str, Any], values: dict[str, Any]) -> web.Response:
    body = orjson.dumps(filled(reply["body"], values)) if "body" in reply else b""
    headers = filled(reply.get("headers", {}), values)
    return web.Response(body=body, status=reply.get("status", 200), content_type="application/json", headers=headers)


async def _until_gone(request: web.Request) -> None:
    while request.transport is not None and not request.transport.is_closing():
        await asyncio.sleep(0.02)
