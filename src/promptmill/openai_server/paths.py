"""The paths of the API and the calls behind them.

`OpenAIPaths` is an ASGI app without the checks of `http.app`, which calls it with a checked token, host and body. The
owner of a request's files and batches is `owner_of(request)`; the models that it may use are `service.offered`.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Message, Receive, Scope, Send

from promptmill.core.errors import PromptmillError
from promptmill.openai_server import api_errors
from promptmill.openai_server.api_errors import ApiError
from promptmill.openai_server.batch_runs import BatchRuns
from promptmill.openai_server.endpoints import PATHS, Endpoints
from promptmill.openai_server.object_store import ObjectStore
from promptmill.openai_server.storage_routes import StorageRoutes
from promptmill.openai_server.stored_files import StoredFiles
from promptmill.server.bulk_tools import running_jobs_of
from promptmill.server.tool_calls import owner_of
from promptmill.service.service import Service
from promptmill.system.logs import announce
from promptmill.system.state import state_folder

__all__ = ["OpenAIPaths", "owner_of"]


def routes(answers: Endpoints) -> list[BaseRoute]:
    """Return the routes of the paths that answer."""
    return [
        Route("/v1/models", answers.models),
        Route("/v1/models/{id:path}", answers.model),
        *(Route(path, answers.reply, methods=["POST"]) for path in PATHS),
    ]


class OpenAIPaths:
    """The app for all paths below `prefix`."""

    prefix = "/v1/"
    streamed = frozenset({"/v1/files"})
    """The paths whose POST bodies the app reads itself, piece by piece, and limits itself."""

    def __init__(self, service: Service) -> None:
        """`service` answers; its creator closes it."""
        handlers = {
            ApiError: api_errors.on_error,
            PromptmillError: api_errors.on_error,
            HTTPException: api_errors.on_http_error,
            Exception: api_errors.on_any_error,
        }
        answers = Endpoints(service)
        found = routes(answers)
        self._batches: BatchRuns | None = None
        try:
            files = StoredFiles(ObjectStore(state_folder() / "openai"))
        except (OSError, sqlite3.Error) as error:  # a container whose disk is read-only can still answer
            announce(f"files and batches are not served: {state_folder()} cannot be used: {error}")
        else:
            self._batches = BatchRuns(files, answers, running_jobs_of(service))
            found += StorageRoutes(files, self._batches, owner_of).routes()
        self._app = Starlette(routes=found, exception_handlers=handlers)
        self._app.router.redirect_slashes = False  # a redirect is no error that a client shows

    async def tend(self) -> None:
        """Resume the batches of an earlier server, and delete files that expire; until it is cancelled."""
        if self._batches is not None:
            await self._batches.tend()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that has passed the checks."""
        send = _identified(scope, send)
        if scope["method"] == "OPTIONS":
            await _preflight(HttpRequest(scope))(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def refuse(
        self, scope: Scope, send: Send, status: int, message: str, headers: Mapping[str, str] | None
    ) -> None:
        """Send the error of a request that fails a check of `http.app`."""
        response = api_errors.refusal(status, message, headers, HttpRequest(scope))
        await response(scope, _no_body, _identified(scope, send))


async def _no_body() -> Message:
    return {"type": "http.disconnect"}


def _identified(scope: Scope, send: Send) -> Send:
    """Return a `send` that adds the request's id, and lets a page of an allowed origin read the reply."""
    origin = next((value for name, value in scope["headers"] if name == b"origin"), None)

    async def identified(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = f"req_{secrets.token_hex(12)}"
            if origin is not None:  # `http.app` refuses other origins
                headers["access-control-allow-origin"] = origin.decode("latin-1")
                headers["access-control-expose-headers"] = "x-request-id, retry-after"
                headers["vary"] = "Origin"
        await send(message)

    return identified


def _preflight(request: HttpRequest) -> Response:
    """Return the permission that a browser asks for before it sends a request with a token."""
    asked = request.headers.get("access-control-request-headers", "authorization, content-type")
    allowed = {
        "access-control-allow-methods": "GET, POST, DELETE",
        "access-control-allow-headers": asked,
        "access-control-max-age": "600",
    }
    return Response(status_code=204, headers=allowed)
