"""The paths of the API and the calls behind them.

`OpenAIPaths` is an ASGI app without the checks of `http.app`, which calls it after checking token, host and body.
`owner_of(request)` is the owner of files and batches; `service.offered` are the models that the request may use.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, ExceptionHandler, Message, Receive, Scope, Send

from promptmill.core.errors import PromptmillError
from promptmill.features.openai_server import api_errors
from promptmill.features.openai_server.api_errors import ApiError
from promptmill.features.openai_server.batch_runs import BatchRuns
from promptmill.features.openai_server.endpoints import PATHS, Endpoints
from promptmill.features.openai_server.object_store import ObjectStore
from promptmill.features.openai_server.rerank import RERANK, RERANK_2
from promptmill.features.openai_server.storage_routes import StorageRoutes
from promptmill.features.openai_server.stored_files import StoredFiles
from promptmill.server.tool_calls import owner_of
from promptmill.server.tool_socket import running_jobs_of
from promptmill.service.service import Service
from promptmill.system.logs import announce
from promptmill.system.state import state_folder

__all__ = ["ApiPaths", "ErrorHandlers", "OpenAIPaths", "owner_of"]


def routes(answers: Endpoints) -> list[BaseRoute]:
    """Return the routes of `Endpoints`."""
    return [
        Route("/v1/models", answers.models),
        Route("/v1/models/{id:path}", answers.model),
        *(Route(path, answers.reply, methods=["POST"]) for path in PATHS),
        *(Route(path, answers.rerank, methods=["POST"]) for path in (RERANK, RERANK_2)),
    ]


ErrorHandlers: TypeAlias = Mapping[Any, ExceptionHandler]
"""The function that replies to each kind of error."""
_ERRORS: ErrorHandlers = {
    ApiError: api_errors.on_error,
    PromptmillError: api_errors.on_error,
    HTTPException: api_errors.on_http_error,
    Exception: api_errors.on_any_error,
}


class ApiPaths:
    """An app for all paths below `prefix`, which replies to errors in the format of its API."""

    prefix = ""
    elsewhere: frozenset[str] = frozenset()
    """Further paths of the app."""
    streamed: frozenset[str] = frozenset()
    """Paths whose POST bodies the app reads and limits itself, piece by piece."""

    def __init__(
        self, routes: Sequence[BaseRoute], origins: Collection[str] = (), errors: ErrorHandlers = _ERRORS
    ) -> None:
        """Web pages from `origins` may read replies."""
        self._origins = origins
        app = Starlette(routes=routes, exception_handlers=errors)
        app.router.redirect_slashes = False  # no redirects, because clients show them as a success
        self._app = app

    async def tend(self) -> None:
        """Do nothing: the API has no background work."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that has passed the checks."""
        await self._readable(self._app, scope)(scope, receive, _identified(send))

    async def refuse(
        self, scope: Scope, send: Send, status: int, message: str, headers: Mapping[str, str] | None
    ) -> None:
        """Send the error for a request that failed a check of `http.app`."""
        response = self.refusal(status, message, headers, HttpRequest(scope))
        await self._readable(response, scope)(scope, _no_body, _identified(send))

    def refusal(
        self, status: int, message: str, headers: Mapping[str, str] | None = None, request: HttpRequest | None = None
    ) -> Response:
        """Return the reply to a request that no handler receives."""
        return api_errors.refusal(status, message, headers, request)

    def _readable(self, app: ASGIApp, scope: Scope) -> ASGIApp:
        """Return `app` with headers that let browsers show its replies to pages from the allowed origins."""
        if Headers(scope=scope).get("origin") not in self._origins:
            return app
        return CORSMiddleware(
            app,
            allow_origins=self._origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=("x-request-id", "retry-after"),
            allow_private_network=True,  # a public page that the operator allowed may call loopback
        )


class OpenAIPaths(ApiPaths):
    """The app for all paths below `/v1/`."""

    prefix = "/v1/"
    elsewhere = frozenset({RERANK_2})
    streamed = frozenset({"/v1/files"})

    def __init__(self, service: Service, origins: Collection[str] = ()) -> None:
        """`service` answers requests; its creator closes it."""
        answers = Endpoints(service)
        found = routes(answers)
        self._batches: BatchRuns | None = None
        try:
            files = StoredFiles(ObjectStore(state_folder() / "openai"))
        except (OSError, sqlite3.Error) as error:  # with a read-only disk, a container can still answer requests
            announce(f"files and batches are not served: {state_folder()} cannot be used: {error}")
        else:
            self._batches = BatchRuns(files, answers, running_jobs_of(service))
            found += StorageRoutes(files, self._batches, owner_of).routes()
        super().__init__(found, origins)

    async def tend(self) -> None:
        """Resume batches of an earlier server and delete expired files, until cancelled."""
        if self._batches is not None:
            await self._batches.tend()


async def _no_body() -> Message:
    return {"type": "http.disconnect"}


def _identified(send: Send) -> Send:
    """Return a `send` that adds the request's id to the reply."""

    async def identified(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["x-request-id"] = f"req_{secrets.token_hex(12)}"
        await send(message)

    return identified
