"""The routes of `/v1/files` and `/v1/batches`."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import orjson
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from promptmill.core.errors import redact
from promptmill.features.openai_server.api_errors import ApiError
from promptmill.features.openai_server.batch_objects import BatchObject
from promptmill.features.openai_server.batch_runs import BatchRuns
from promptmill.features.openai_server.endpoints import body_of
from promptmill.features.openai_server.object_store import Listing
from promptmill.features.openai_server.stored_files import StoredFiles

_log = logging.getLogger(__name__)
Handler: TypeAlias = Callable[[HttpRequest], Awaitable[Response]]


class StorageRoutes:
    """Handles requests for files and batches. `owner_of` returns the owner of the objects that a request creates."""

    def __init__(self, files: StoredFiles, batches: BatchRuns, owner_of: Callable[[HttpRequest], str]) -> None:
        self._files, self._batches, self._owner_of = files, batches, owner_of

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            Route(path, _usable(handler), methods=[method])
            for method, path, handler in (
                ("POST", "/v1/files", self._upload),
                ("GET", "/v1/files", self._list_files),
                ("GET", "/v1/files/{id}", self._file),
                ("DELETE", "/v1/files/{id}", self._delete),
                ("GET", "/v1/files/{id}/content", self._content),
                ("POST", "/v1/batches", self._create),
                ("GET", "/v1/batches", self._list_batches),
                ("GET", "/v1/batches/{id}", self._batch),
                ("POST", "/v1/batches/{id}/cancel", self._cancel),
            )
        ]

    async def _upload(self, request: HttpRequest) -> Response:
        try:
            kind, owner = request.headers.get("content-type", ""), self._owner_of(request)
            return _json((await self._files.upload(kind, request.stream(), owner)).shown())
        except ClientDisconnect:
            return Response(status_code=400)

    async def _list_files(self, request: HttpRequest) -> Response:
        listing = _listing(request, 10_000, 10_000)
        return _json(await asyncio.to_thread(self._files.page, self._owner_of(request), listing))

    async def _file(self, request: HttpRequest) -> Response:
        return _json((await asyncio.to_thread(self._files.find, _id(request), self._owner_of(request))).shown())

    async def _delete(self, request: HttpRequest) -> Response:
        return _json(await asyncio.to_thread(self._files.delete, _id(request), self._owner_of(request)))

    async def _content(self, request: HttpRequest) -> Response:
        file = await asyncio.to_thread(self._files.find, _id(request), self._owner_of(request))
        return FileResponse(self._files.path(file.id), media_type="application/octet-stream", filename=file.filename)

    async def _create(self, request: HttpRequest) -> Response:
        count = request.headers.get("x-stainless-retry-count", "")
        attempt = int(count) if count.isascii() and count.isdigit() and len(count) < 4 else None
        return _shown(await self._batches.create(await body_of(request), self._owner_of(request), attempt))

    async def _list_batches(self, request: HttpRequest) -> Response:
        return _json(await asyncio.to_thread(self._batches.page, self._owner_of(request), _listing(request, 20, 100)))

    async def _batch(self, request: HttpRequest) -> Response:
        return _shown(await asyncio.to_thread(self._batches.find, _id(request), self._owner_of(request)))

    async def _cancel(self, request: HttpRequest) -> Response:
        return _shown(await asyncio.to_thread(self._batches.cancel, _id(request), self._owner_of(request)))


def _usable(handler: Handler) -> Handler:
    """Wrap a handler, so that it reports an error if the state folder is full or locked by another program."""

    async def handle(request: HttpRequest) -> Response:
        try:
            return await handler(request)
        except (OSError, sqlite3.Error) as error:
            _log.warning("files and batches: %s", redact(str(error)))
            message = "The server's folder of files and batches cannot be used now; its log has the reason."
            raise ApiError(503, message, None, "storage", {"retry-after": "30"}) from None

    return handle


def _id(request: HttpRequest) -> str:
    return str(request.path_params["id"])


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


def _shown(batch: BatchObject) -> Response:
    return _json(batch.model_dump())


def _listing(request: HttpRequest, default: int, most: int) -> Listing:
    """Return the part of a list that the query parameters request. Raises `ApiError` 400."""
    asked = request.query_params
    limit, order = asked.get("limit", str(default)), asked.get("order", "desc")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 9 and 1 <= int(limit) <= most):
        raise ApiError(400, f"limit must be from 1 to {most}.", "limit")
    if order not in {"asc", "desc"}:
        raise ApiError(400, "order must be asc or desc.", "order")
    return Listing(int(limit), asked.get("after", ""), order == "desc", asked.get("purpose", ""))
