"""The answer cache: a request with a cached answer is not sent; of identical requests in flight, only one is sent.

The position of the cache depends on the clients of the process:

    one user         cached ─▶ several ─▶ checked ─▶ priced ─▶ backend    a hit is free and counted as a hit
    several clients  several ─▶ checked ─▶ priced ─▶ cached ─▶ backend    a hit is reported like a sent request

No client may learn another client's requests from a report. So with several clients, the cache replaces the backend: a
hit counts as a request and has the usage and the warnings of the first answer. All steps around the cache treat the hit
as usual: they check, count and charge it. Only the time differs, not the report. Equal requests of two calls are both
sent, because a call that waits for another call's request would get its answer too soon. Only requests at temperature 0
are cached, because at other temperatures, equal answers would reveal a hit. The two positions store different answers
(checked and unchecked), so neither finds the other's answers.

All processes of a user share one cache file, which is limited in size and age and readable only by this user.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, TypeGuard

import orjson

from promptmill.backends import registry
from promptmill.backends.outcome_data import outcome_data, outcome_of
from promptmill.backends.protocol import Call, Completion, Failure, Outcome, copied
from promptmill.config.model_config import ModelConfig
from promptmill.config.settings import OF_EFFORT, OpenAISettings
from promptmill.core.bounds import LONGEST_ANSWER
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import Request, SourcedPart
from promptmill.images import load as images
from promptmill.images.load import ImageRules, load
from promptmill.steps.flights import OneFlight, is_repeatable, request_digest
from promptmill.steps.step import Loading, Place
from promptmill.system.safe_open import home_expanded, make_private
from promptmill.system.state import cache_folder

FILE_NAME = "answers.sqlite"
_LOOK_AFTER = 1000  # written answers between two checks of the file's size and age
_ANSWER = "SELECT answer FROM answers WHERE key = ? AND made > ?"
_READ_AT_ONCE = 32  # max answers, each of at most `LONGEST_ANSWER` bytes, that are read together
_DELETE_OLDEST = """
DELETE FROM answers
WHERE key IN (SELECT key FROM answers ORDER BY made LIMIT max(1, (SELECT count(*) / 10 FROM answers)))
"""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer BLOB NOT NULL, made REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_age ON answers (made);
"""
_COMPLETE = frozenset({"stop", "tool_calls"})
_LOG = logging.getLogger(__name__)
_Warn: TypeAlias = Callable[[str], None]


class CachedAnswers(OneFlight[tuple[Call | None, bytes]]):
    """Returns cached answers, and sends only one of identical requests (with several clients: one in each call).

    It keeps complete answers to requests at temperature 0 or, with `everything`, to all requests of a single user.
    """

    one_by_one = False  # if the first request fails, the others would fail one after another

    @classmethod
    async def of(cls, loading: Loading) -> Self | None:
        """Return the step if a cache is configured. Raises `PromptmillError` (`storage`) if it is unusable."""
        if not (wanted := loading.config.operator.cache):
            return None
        cache = await asyncio.to_thread(AnswerCache, path_of(wanted))
        return cls(loading.config, cache, everything=wanted == "all", is_shared=loading.is_shared)

    def __init__(self, config: ModelConfig, cache: AnswerCache, *, everything: bool, is_shared: bool) -> None:
        """`is_shared`: the process has several clients, so a hit is reported like a sent request."""
        super().__init__()
        self.place = Place.SENT if is_shared else Place.CACHED
        self._everything = everything and not is_shared
        self._is_shared = is_shared
        self._decides = registry.decides(config)
        self._of_config = _fingerprint_of(config, is_shared=is_shared)
        self._rules = ImageRules.of(
            config.file_rule, config.settings.max_image_pixels, config.settings.max_image_memory
        )
        self._batches = _Batches(cache)

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request. A request whose answer may vary is sent without the cache.

        With several clients, this also holds for a request with a `response_format`: its answer is not yet checked
        here, so an invalid answer would be kept. A decision is checked when it is read.
        """
        if not (self._everything or self._decides or is_repeatable(request)):
            return self.following(request, call)
        is_unchecked = request.sampling.response_format is not None and not self._decides
        if self._is_shared and is_unchecked:
            return self.following(request, call)
        return self.once(request, call) if call.portion_of is None else self._of_batch(request, call)

    async def _of_batch(self, request: Request, call: Call) -> Outcome:
        """Return the outcome of a request by its own reply in a batch, which is paid; without a reply, as `once`."""
        outcome = await self.following(request, call)
        if isinstance(outcome, Failure) and outcome.error.code is Code.BATCHED and outcome.attempts == request.attempts:
            return await self.once(request, call)
        if (question := await self.question(request, call)) is not None:
            self.learn(question, outcome, request, call, is_second=False)
        return outcome

    async def leave(self, call: Call) -> None:
        """Wait until all answers so far are on disk, so that the next process finds them."""
        del call
        await asyncio.shield(self._batches.flush())

    async def aclose(self) -> None:
        """Write the remaining answers, and close the cache."""
        await self._batches.aclose()

    async def question(self, request: Request, call: Call) -> tuple[Call | None, bytes] | None:
        """Return the cache key of a request (with several clients, together with the call); None if the answer must
        not be cached."""
        key = await self._key(request, call)
        return None if key is None else (call if self._is_shared else None, key)

    async def known(self, question: tuple[Call | None, bytes], request: Request, call: Call) -> Outcome | None:
        """Return the cached answer."""
        answer = await self._batches.look_up(question[1], self._warn_of(call))
        return answer if _serves(answer, request) else None

    def learn(
        self, question: tuple[Call | None, bytes], outcome: Outcome, request: Request, call: Call, *, is_second: bool
    ) -> bool:
        """Keep a complete answer. A failure is not shared."""
        del is_second
        if not isinstance(outcome, Completion) or (self._is_shared and not _is_of_one_request(outcome, request)):
            return False
        if outcome.finish_reason in _COMPLETE:
            self._batches.keep(question[1], outcome, self._warn_of(call))
        return True

    def copied(self, outcome: Outcome, request: Request, call: Call, began: float) -> Outcome | None:
        """Return a copy of an answer. With several clients, the copy is reported like the answer to a sent request."""
        if not _serves(outcome, request):
            return None
        for warning in outcome.warnings:
            call.warn(warning)
        if self._is_shared:
            call.sending(request)
            latency_s = round(time.monotonic() - began, 4)
            return replace(outcome, attempts=request.attempts + 1, latency_s=latency_s, cost=None, unmetered=0)
        call.counts.cached += 1
        # The file stores no costs. A hit is reported as an answer of the model.
        cost = None if call.counts.cost is None else 0.0
        return replace(copied(outcome, request.attempts), cost=cost, came="cached")

    def _warn_of(self, call: Call) -> _Warn:
        return _LOG.warning if self._is_shared else call.warn

    async def _key(self, request: Request, call: Call) -> bytes | None:
        """Return the cache key of a request; None if its answer must not be cached."""
        parts = request.conversation.sourced
        if any(images.is_web(part.source) for part in parts):
            return None  # not cached, because the image at a URL may change
        try:
            context = [self._of_config, call.facts.keep_raw]
            if self._is_shared:  # the tier is a part of the question, because it affects the price of the reply
                context.append(request.extra.get("service_tier"))
            asked = request_digest(request, *context, decides=self._decides)
            files = [part for part in parts if not images.is_data(part.source)]
            return await asyncio.to_thread(self._with_files, asked, files) if files else asked
        except (OSError, TypeError, ValueError, PromptmillError):
            return None  # the request's own attempt will report the error

    def _with_files(self, asked: bytes, files: list[SourcedPart]) -> bytes:
        """Return a digest of `asked` and of the content of `files`. The image rules apply to the files. Blocks."""
        digest = hashlib.blake2b(asked, digest_size=24)
        for part in files:
            digest.update(hashlib.blake2b(load(part, self._rules).data).digest())
        return digest.digest()


class _Batches:
    """Reads and writes the cache in a thread. Lookups in the same turn of the event loop are read together."""

    def __init__(self, cache: AnswerCache) -> None:
        self._cache = cache
        self._wanted: dict[bytes, asyncio.Future[Completion | None]] = {}
        self._unwritten: dict[bytes, bytes] = {}
        """Answers that are not yet on disk."""
        self._to_keep: list[tuple[bytes, bytes, _Warn]] = []
        self._looking: set[asyncio.Task[None]] = set()
        self._keeping: asyncio.Task[None] | None = None

    async def look_up(self, key: bytes, warn: _Warn) -> Completion | None:
        """Return the cached answer for `key`, or None. `warn` is called with the error of a broken cache."""
        if (kept := self._unwritten.get(key)) is not None:
            return _unpacked(kept)
        loop = asyncio.get_running_loop()
        if not self._wanted:
            loop.call_soon(self._look)
        found = self._wanted.get(key) or self._wanted.setdefault(key, loop.create_future())
        try:
            return await found
        except PromptmillError as error:
            warn(f"{error} Nothing was answered from it.")
            return None

    def keep(self, key: bytes, answer: Completion, warn: _Warn) -> None:
        """Queue an answer for writing unless it is too large. `warn` is called with the error of a broken cache."""
        try:
            packed = orjson.dumps(outcome_data(answer))
        except TypeError:  # a value that JSON cannot represent
            return
        if len(packed) > LONGEST_ANSWER:
            return
        self._unwritten[key] = packed
        self._to_keep.append((key, packed, warn))
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.ensure_future(self._keep_all())

    async def flush(self) -> None:
        """Wait until all answers so far are on disk."""
        if self._keeping is not None:
            await asyncio.wait({self._keeping})

    async def aclose(self) -> None:
        """Write the last answers, and close the cache."""
        await self.flush()
        await asyncio.to_thread(self._cache.close)

    def _look(self) -> None:
        wanted, self._wanted = self._wanted, {}
        looking = asyncio.ensure_future(self._look_up_all(wanted))
        self._looking.add(looking)
        looking.add_done_callback(self._looking.discard)

    async def _look_up_all(self, wanted: dict[bytes, asyncio.Future[Completion | None]]) -> None:
        try:
            while wanted:
                keys = list(itertools.islice(wanted, _READ_AT_ONCE))
                answers = await asyncio.to_thread(self._read, keys)
                for key in keys:
                    future = wanted.pop(key)  # otherwise `wanted` would keep all answers in memory
                    if not future.done():
                        future.set_result(answers.get(key))
        except PromptmillError as error:
            for future in wanted.values():
                if not future.done():
                    future.set_exception(error)

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, Completion | None]:
        """Return the cached answers for `keys`. Blocks. Raises as `AnswerCache` does."""
        return {key: _unpacked(answer) for key, answer in self._cache.get(keys).items()}

    async def _keep_all(self) -> None:
        while self._to_keep:
            some, self._to_keep = self._to_keep, []
            try:
                await asyncio.to_thread(self._cache.put, [(key, packed) for key, packed, _ in some])
            except PromptmillError as error:
                for warn in {warn for _, _, warn in some}:
                    warn(f"{error} The answers were not kept.")
            for key, _, _ in some:
                self._unwritten.pop(key, None)


def _serves(answer: Outcome | None, request: Request) -> TypeGuard[Completion]:
    """Return whether there is an answer, and the answer honours all parameters that `request` requires."""
    return isinstance(answer, Completion) and not (answer.warnings and request.required)


def _is_of_one_request(answer: Completion, request: Request) -> bool:
    """Return whether `answer` can also answer another request.

    It cannot if its usage includes failed attempts, or if it has the id or the time of the response that brought it.
    """
    return answer.attempts == request.attempts + 1 and answer.details is None


def _fingerprint_of(config: ModelConfig, *, is_shared: bool) -> bytes:
    """Return a digest of the cache's position and of the configuration's settings that affect answers."""
    block = config.block
    assert block is not None
    # The block of another package may have parameters with the same names as `OpenAISettings`.
    effort = OpenAISettings.marked(OF_EFFORT) | block.marked(OF_EFFORT)
    asked = block.model_dump(mode="json", exclude={*effort, "headers"})
    headers = getattr(block, "headers", {})
    values = [(name, hashlib.sha256(headers[name].get_secret_value().encode()).hexdigest()) for name in sorted(headers)]
    return orjson.dumps((7, is_shared, config.backend, asked, values), option=orjson.OPT_SORT_KEYS)


def _unpacked(data: bytes) -> Completion | None:
    try:
        answer = outcome_of(*orjson.loads(data))
    except (ValueError, TypeError):
        return None
    return answer if isinstance(answer, Completion) else None


def path_of(wanted: Literal[True] | str) -> Path:
    """Return the file for the configuration's `cache`; `true` and `all` mean a file in promptmill's cache folder."""
    if wanted is not True and wanted != "all":
        return home_expanded(wanted)
    return cache_folder() / "answers" / FILE_NAME


class AnswerCache:
    """A key-value store. All methods block, may be called from any thread, and raise `PromptmillError` (`storage`)."""

    def __init__(self, path: Path, *, most_bytes: int = 1 << 30, most_age_s: float = 30 * 24 * 3600.0) -> None:
        """Open the file at `path`, or create it, without reading answers."""
        self.path = path
        self._most_bytes = most_bytes
        self._most_age_s = most_age_s
        self._lock = threading.Lock()
        self._written = 0
        try:
            _make_private(path)
            self._db = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
            # `synchronous` is off: an answer that a power failure loses is simply requested again
            self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;" + _SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise _unusable(path, error) from None

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the cached answers for `keys` that are not too old, by key."""
        since = time.time() - self._most_age_s
        with self._in_use():
            rows = ((key, self._db.execute(_ANSWER, (key, since)).fetchone()) for key in keys)
            return {key: row[0] for key, row in rows if row is not None}

    def put(self, answers: Iterable[tuple[bytes, bytes]]) -> None:
        """Write `answers`, and delete the oldest answers if there are too many."""
        now = time.time()
        rows = [(key, answer, now) for key, answer in answers]
        with self._in_use():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)
                self._written += len(rows)
                if self._written >= _LOOK_AFTER or self._bytes() > self._most_bytes:
                    self._written = 0
                    self._drop_old(now)
            finally:
                self._db.execute("COMMIT")

    def summary(self) -> dict[str, Any]:
        """Return the path, the number of answers, their size in bytes and the age of the oldest answer in seconds."""
        with self._in_use():
            count, oldest = self._db.execute("SELECT count(*), min(made) FROM answers").fetchone()
            size = self._bytes()
        age = None if oldest is None else round(time.time() - oldest)
        return {"path": str(self.path), "answers": count, "bytes": size, "oldest_s": age}

    def clear(self) -> int:
        """Delete all answers; return their number."""
        with self._in_use():
            count: int = self._db.execute("DELETE FROM answers").rowcount
            self._db.execute("VACUUM")
        return count

    def close(self) -> None:
        """Close the file."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._db.close()

    def _bytes(self) -> int:
        pages, free, size = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _drop_old(self, now: float) -> None:
        self._db.execute("DELETE FROM answers WHERE made <= ?", (now - self._most_age_s,))
        while self._bytes() > self._most_bytes:
            if not self._db.execute(_DELETE_OLDEST).rowcount:
                break

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise _unusable(self.path, error) from None


def _make_private(path: Path) -> None:
    """Create the file for this user only. Raises `OSError`, also if it is a link or another user's file."""
    make_private(path.parent)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    if sys.platform == "win32":
        return
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(1, "it is not a regular file of this user's")
    path.chmod(0o600)


def _unusable(path: Path, error: Exception) -> PromptmillError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return PromptmillError(
        Code.STORAGE, f"The cache {path} cannot be used: {reason}.", "Remove the file, or name another in `cache`."
    )
