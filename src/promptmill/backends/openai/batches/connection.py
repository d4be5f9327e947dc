"""Sends requests to a Batch API over a pool, either once or until one succeeds. Uploads and downloads files."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit, urlunsplit

import orjson

from promptmill.backends.batches import BatchUnclearError, QueueFullError
from promptmill.backends.openai.batches.reading import is_full, json_object
from promptmill.backends.openai.endpoint import Endpoint, is_near
from promptmill.backends.openai.failures import (
    FailureKind,
    InvalidResponseError,
    RetryDecision,
    TransportError,
    backoff_s,
    classify_exception,
    code_of,
)
from promptmill.backends.openai.http_connection import Headers
from promptmill.backends.openai.refusals import classify_refusal, with_key_hint
from promptmill.backends.openai.route import FileBody
from promptmill.backends.openai.transport import Pool
from promptmill.config.settings import OpenAISettings
from promptmill.core.bounds import LARGEST_BODY, MOST_PAGES
from promptmill.core.errors import Code, PromptmillError, redact
from promptmill.core.values import JsonDict, JsonObject

if TYPE_CHECKING:
    from promptmill.backends.openai.session import StreamedResponse  # imports aiohttp

T = TypeVar("T")
Sleep: TypeAlias = Callable[[float], Awaitable[None]]
Query: TypeAlias = Mapping[str, str | int]
"""The query parameters of a URL."""
_LOG = logging.getLogger(__name__)
_PASSING = frozenset({FailureKind.TRANSIENT, FailureKind.LOAD, FailureKind.LOST})
# Codes of exceptions that occur before any byte of the request is sent.
_NOT_SENT = frozenset({Code.TLS, Code.NAME_RESOLUTION, Code.UNREACHABLE, Code.NO_FILE_DESCRIPTORS})
# Statuses after which the request may have been carried out: a gateway sends them if its server's answer was lost, and
# a provider sends 409 if the object already exists.
_UNCLEAR = frozenset({408, 409, 425, 499})
_MISSING = frozenset({404, 405, 410, 501})
# Statuses with which providers refuse to cancel a batch that has ended.
_ENDED_ALREADY = frozenset({400, 404, 409, 410, 422})
# Statuses of redirects: providers redirect a download to their storage.
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_HOPS = 3
_LONGEST_WAIT_S = 300.0  # if the endpoint asks for a longer wait, the request fails
_FILE_CHECKS, _FILE_CHECK_S = 240, 5.0  # limit of polls, and seconds between them; Azure takes minutes for 200 MB


@dataclass(slots=True)
class FailedRequestError(Exception):
    """A request got no usable response. `is_unclear`: the provider may have carried out the request anyway."""

    decision: RetryDecision
    is_unclear: bool
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    payload: Any = None


class Paging(NamedTuple):
    """How a provider's list is read page by page."""

    first: Query
    """The query parameters for every page."""
    following: Callable[[JsonObject, int], Query | None]
    """A function that takes a page and its number (from 1). It returns the next page's parameters; None at the end."""


class BatchConnection:
    """Sends the requests of one endpoint's Batch API. Paths such as `/batches` are relative to `root`."""

    def __init__(
        self,
        pool: Pool,
        endpoint: Endpoint,
        settings: OpenAISettings,
        *,
        root: str,
        sleep: Sleep = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        """`root`: the URL that precedes all paths. The query of the endpoint's URL is added to each URL."""
        self.endpoint = replace(endpoint, url=root)
        self._pool, self._settings = pool, settings
        self._query = urlsplit(endpoint.url).query
        self._is_near = is_near(urlsplit(root).hostname or "")
        self._sleep = sleep
        self._rng = rng or random.SystemRandom()

    def url(self, path: str, query: Query | None = None) -> str:
        """Return the URL for a path below the root. `path` may also be a complete URL."""
        is_whole = "://" in path
        parts = urlsplit(path if is_whole else self.endpoint.url + path)
        queries = [parts.query, "" if is_whole else self._query, urlencode(query or {})]
        return urlunsplit(parts._replace(query="&".join(filter(None, queries))))

    async def once(
        self,
        method: str,
        path: str,
        body: FileBody | bytes | JsonObject | None = None,
        *,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
        largest: int = LARGEST_BODY,
    ) -> tuple[JsonDict | list[Any], Headers]:
        """Send a request once. Return the response's JSON (`{}` if empty) and headers. Raises `FailedRequestError`."""
        endpoint = self._to(path, query)
        sent = body if isinstance(body, FileBody | bytes) else b"" if body is None else orjson.dumps(body)
        kind = {"Content-Type": body.content_type} if isinstance(body, FileBody) else {}
        try:
            async with self._exchange(endpoint, method, {**kind, **(headers or {})}, sent) as response:
                content = await response.read(largest)
                if not 200 <= response.status < 300:
                    raise self._refused(response.status, response.headers, content, endpoint)
                payload = json_object(content) if content.strip() else {}
                if payload is None:
                    raise InvalidResponseError("not JSON")
                return payload, response.headers
        except (TransportError, OSError, ValueError) as error:
            raise self._lost(error, endpoint) from None

    async def call(
        self,
        method: str,
        path: str,
        body: JsonObject | None = None,
        *,
        query: Query | None = None,
        largest: int = LARGEST_BODY,
    ) -> JsonDict | list[Any]:
        """Send a request, which may be repeated, and return the response's JSON. Raises `PromptmillError`."""
        return (await self.repeated(lambda: self.once(method, path, body, query=query, largest=largest)))[0]

    async def repeated(self, attempt: Callable[[], Awaitable[T]], look: Callable[[], Awaitable[T]] | None = None) -> T:
        """Repeat `attempt` with waits until it succeeds, and return its result. Raises `PromptmillError`.

        After an unclear failure, `look` is called; its result is returned if it is not empty.
        """
        failures = 0
        while True:
            try:
                return await attempt()
            except FailedRequestError as failed:
                failures += 1
                await self.wait(failed, failures)
                if look is not None and failed.is_unclear and (result := await look()):
                    return result

    async def create(
        self,
        path: str,
        body: FileBody | JsonObject,
        *,
        quota_is_queue: bool = False,
    ) -> JsonDict:
        """Send the request that creates a batch, only once. Raises the same errors as `BatchApi.create`.

        `quota_is_queue`: the provider reports a full queue as an exceeded quota.
        """
        try:
            payload, _ = await self.once("POST", path, body)
        except FailedRequestError as failed:
            error = failed.decision.error
            if failed.is_unclear:
                raise BatchUnclearError(error.code, error.message, error.hint) from None
            soft = quota_is_queue and failed.status == 429 and error.code is Code.INSUFFICIENT_QUOTA
            if error.code is Code.RATE_LIMITED or is_full(failed.payload, soft=soft):
                full = QueueFullError(Code.RATE_LIMITED, error.message, error.hint)
                full.wait_s = failed.decision.wait_s
                full.is_rate = not (soft or is_full(failed.payload))
                raise full from None
            raise error from None
        if not isinstance(payload, dict):
            raise BatchUnclearError(Code.BAD_RESPONSE, f"{self.endpoint.name} sent no batch.", "")
        return payload

    async def until_processed(self, path: str, is_ready: Callable[[JsonObject], bool]) -> None:
        """Poll an uploaded file until `is_ready` returns true or raises a refusal. Raises `PromptmillError`."""
        for _ in range(_FILE_CHECKS):
            payload = await self.call("GET", path)
            if is_ready(payload if isinstance(payload, dict) else {}):
                return
            await self._sleep(_FILE_CHECK_S)
        raise PromptmillError(Code.TIMEOUT, f"{self.endpoint.name} did not process a file in time.", "")

    async def delete(self, path: str) -> None:
        """Delete an object, if it exists. A refusal is only logged: providers delete old objects themselves."""
        try:
            await self.call("DELETE", path)
        except PromptmillError as error:
            if error.code not in {Code.NOT_FOUND, Code.BAD_REQUEST, Code.UNAUTHORIZED}:
                raise
            if error.code is not Code.NOT_FOUND:
                _LOG.warning("%s", error)

    async def cancel(self, path: str) -> None:
        """Request the cancellation of a batch. A refusal because the batch has ended is ignored."""

        async def attempt() -> None:
            try:
                await self.once("POST", path)
            except FailedRequestError as failed:
                if failed.status not in _ENDED_ALREADY:
                    raise

        await self.repeated(attempt)

    async def lines(self, path: str, query: Query | None = None) -> AsyncIterator[JsonDict]:
        """Yield the objects in a JSON Lines file, `{}` for a damaged line. Raises `PromptmillError`.

        After a lost connection, the file is read again from its beginning.
        """
        endpoint, failures, hops = self._to(path, query), 0, 0
        while True:
            try:
                async with self._exchange(endpoint, "GET", {"Accept": "*/*"}) as response:
                    if response.status in _REDIRECTS and hops < _MOST_HOPS and "Location" in response.headers:
                        endpoint, hops = self._to(urljoin(endpoint.url, response.headers["Location"])), hops + 1
                        continue
                    if response.status != 200:
                        raise self._refused(
                            response.status, response.headers, await response.read(LARGEST_BODY), endpoint
                        )
                    async for line in _lines(response.pieces()):
                        parsed = json_object(line)
                        yield parsed if isinstance(parsed, dict) else {}
                    return
            except (TransportError, OSError, ValueError) as error:
                failed = self._lost(error, endpoint)
            except FailedRequestError as refused:
                failed = refused
            failures += 1
            await self.wait(failed, failures)
            endpoint, hops = self._to(path, query), 0  # a redirect's address may be valid for a few minutes only

    async def pages(
        self, path: str, field: str, paging: Paging, query: Query | None = None
    ) -> AsyncIterator[list[JsonDict]]:
        """Yield the pages of a list. A page is a list, or an object with the list in `field`."""
        before: set[bytes] = set()
        number = 0
        following: Query | None = {}
        while following is not None:
            payload = await self.call("GET", path, query={**paging.first, **(query or {}), **following})
            listed = payload if isinstance(payload, list) else payload.get(field) or payload.get("value")
            entries = [entry for entry in listed or () if isinstance(entry, dict)]
            digests = set(map(orjson.dumps, entries))
            if digests <= before:  # an empty page, or the same page again, because the endpoint ignores the parameter
                return
            before = digests
            yield entries
            number += 1
            if number > MOST_PAGES:
                text = f"{self.endpoint.name} listed more than {MOST_PAGES:,} pages."
                raise PromptmillError(Code.UNSUPPORTED, text, "Delete old files and batches there.")
            following = None if isinstance(payload, list) else paging.following(payload, number)

    async def wait(self, failed: FailedRequestError, failures: int) -> None:
        """Wait after `failures` failed attempts. Raises the error if a further attempt is useless."""
        decision, settings = failed.decision, self._settings
        asked_s = decision.wait_s or 0.0
        if decision.kind not in _PASSING or failures >= settings.retries or asked_s > _LONGEST_WAIT_S:
            raise decision.error
        await self._sleep(max(asked_s, backoff_s(failures, settings.base_delay, settings.max_delay, self._rng)))

    def _to(self, path: str, query: Query | None = None) -> Endpoint:
        """Return the endpoint for one request. Only the provider's own host gets the key.

        Raises `PromptmillError` (`unsupported`) for an address without TLS or with a user name.
        """
        url = self.url(path, query)
        ours, there = urlsplit(self.endpoint.url), urlsplit(url)
        if (ours.scheme, ours.netloc) == (there.scheme, there.netloc):
            return replace(self.endpoint, url=url)
        if there.scheme not in {"https", ours.scheme} or "@" in there.netloc:
            what = "with a user's name" if "@" in there.netloc else "without TLS"
            text = f"{self.endpoint.name} named an address {what} for a file."
            raise PromptmillError(Code.UNSUPPORTED, text, "Nothing is sent there.")
        return replace(self.endpoint, url=url, headers={}, renewed=None)

    def _exchange(
        self, endpoint: Endpoint, method: str, headers: Mapping[str, str], body: FileBody | bytes = b""
    ) -> AbstractAsyncContextManager[StreamedResponse]:
        """Send a request. If a remote provider names the address of a file, the address must not be a private one."""
        is_foreign = urlsplit(endpoint.url)[:2] != urlsplit(self.endpoint.url)[:2]
        only_public = is_foreign and not self._is_near
        return self._pool.exchange(endpoint, method, headers, body, only_public=only_public)

    def _refused(self, status: int, headers: Headers, content: bytes, endpoint: Endpoint) -> FailedRequestError:
        payload = json_object(content) or content.decode("utf-8", "replace")
        decision = classify_refusal(status, headers, payload, endpoint)
        error = with_key_hint(endpoint, decision.error, status)
        if status in _MISSING:
            error = PromptmillError(Code.NOT_FOUND, error.message, f"The request went to {_place(endpoint)}.")
            decision = replace(decision, kind=FailureKind.ITEM)
        is_unclear = (status >= 500 and status not in _MISSING) or status in _UNCLEAR
        return FailedRequestError(replace(decision, error=error), is_unclear, status, headers, payload)

    def _lost(self, error: Exception, endpoint: Endpoint) -> FailedRequestError:
        was_sent = error.was_sent if isinstance(error, TransportError) else code_of(error) not in _NOT_SENT
        return FailedRequestError(classify_exception(error, endpoint), was_sent)


def _place(endpoint: Endpoint) -> str:
    """Return the URL of an endpoint without its query, which may contain a signature."""
    return redact(endpoint.url.partition("?")[0], endpoint.hidden)


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the non-empty lines of a body. A line that is too long is truncated and thus no longer valid JSON."""
    parts: list[bytes] = []
    size = 0
    async for piece in pieces:
        first, *others = piece.split(b"\n")
        if size <= 2 * LARGEST_BODY:  # a line holds an answer's body, whose size doubles if each character is escaped
            parts.append(first)
        size += len(first)
        for other in others:
            if line := b"".join(parts).strip():
                yield line
            parts, size = [other], len(other)
    if line := b"".join(parts).strip():
        yield line
