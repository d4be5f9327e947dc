"""The two paths as apps of the HTTP server. They leave out the checks that `http.app` makes before it calls them."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Collection, Mapping, Sequence

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import PromptmillError
from promptmill.core.request import PROTECTING_NAMES
from promptmill.core.values import JsonDict
from promptmill.features.decisions import openai_api, system_one
from promptmill.features.decisions.bodies import UnreadableBodyError, object_in
from promptmill.features.decisions.client_questions import ClientQuestion, Evidence
from promptmill.features.decisions.deciding import Decided, decided
from promptmill.features.decisions.patience import WAIT_S, NotYetError, Patience
from promptmill.features.decisions.system_one import InvalidBodyError, problem
from promptmill.features.openai_server import api_errors
from promptmill.features.openai_server.api_errors import ApiError, as_api_error, as_written
from promptmill.features.openai_server.bodies import model_of
from promptmill.features.openai_server.choices import note_on
from promptmill.features.openai_server.endpoints import Endpoints, client_of, logged
from promptmill.features.openai_server.paths import ApiPaths, ErrorHandlers
from promptmill.features.openai_server.streams import unless_left
from promptmill.server.tool_calls import owner_of
from promptmill.service.service import Service

_NOT_YET = (
    "The model needs longer than clients of this API wait; it goes on. Send the same request again for the answer."
)
_AGAIN = {"retry-after": "5"}  # seconds; clients give up after 30 s in all, most of which must be left to the model


class OpenAIDecisions(ApiPaths):
    """OpenAI's Decisions API."""

    prefix = "/v1/decisions"

    def __init__(self, service: Service, origins: Collection[str] = ()) -> None:
        """See `OpenAIPaths`."""
        super().__init__([Route(self.prefix, self._answer, methods=["POST"])], origins)
        self._calls = _Calls(service, self.prefix)

    async def _answer(self, request: HttpRequest) -> Response:
        try:
            body = await object_in(await request.body())
        except UnreadableBodyError as error:
            raise ApiError(400, str(error)) from None
        name = model_of(body)
        evidence, questions = await asyncio.to_thread(openai_api.read, body)
        config = await self._calls.config_of(name, request)
        found = await unless_left(request.receive, self._calls.decided(config, evidence, questions, request))
        note = " ".join(filter(None, (found.note, *note_on(body).values())))
        return _json(openai_api.reply(found.model or name or config.name, questions, *found[:2], note))


class SystemOne(ApiPaths):
    """TypeSafe's API. A client that would give up too early gets a reply that asks it to repeat its request."""

    prefix = "/v1/systemone"

    def __init__(self, service: Service, origins: Collection[str] = ()) -> None:
        """See `OpenAIPaths`."""
        errors: ErrorHandlers = {
            InvalidBodyError: _on_invalid,
            **dict.fromkeys((ApiError, PromptmillError, HTTPException, Exception), self._on_error),
        }
        super().__init__([Route(self.prefix, self._answer, methods=["POST"])], origins, errors)
        self._calls = _Calls(service, self.prefix)
        self._patience: Patience[Decided] = Patience()

    async def tend(self) -> None:
        """Wait until the server ends; then end the work for which no client waits."""
        try:
            await asyncio.Event().wait()
        finally:
            await self._patience.aclose()

    def refusal(
        self, status: int, message: str, headers: Mapping[str, str] | None = None, request: HttpRequest | None = None
    ) -> Response:
        """See `ApiPaths`."""
        if request is not None and not message:
            message = f"There is no {request.method} {request.url.path}; send a POST to {self.prefix}."
        return Response(orjson.dumps(system_one.error_body(status, message)), status, headers, "application/json")

    async def _answer(self, request: HttpRequest) -> Response:
        raw = await request.body()
        try:
            body = await object_in(raw)
        except UnreadableBodyError as error:
            raise problem(str(error), kind="json_invalid") from None
        for protecting in PROTECTING_NAMES & body.keys():  # other names are ignored, as TypeSafe does
            raise problem(f"this path takes no `{protecting}`; the configuration sets it.", protecting)
        name, evidence, questions = await asyncio.to_thread(system_one.read, body)
        config = await self._calls.config_of(name, request)
        key = hashlib.sha256(b"%b\0%b" % (owner_of(request).encode(), raw)).digest()
        work = functools.partial(self._calls.decided, config, evidence, questions, request)
        try:
            found = await unless_left(request.receive, self._patience.result(key, work, _wait_s(request)))
        except NotYetError:
            raise ApiError(503, _NOT_YET, headers=_AGAIN) from None
        return _json(system_one.reply(found.model or config.name, questions, *found[:3]))

    async def _on_error(self, request: HttpRequest, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            message = "" if error.status_code in {404, 405} else error.detail
            return self.refusal(error.status_code, message, error.headers, request)
        found = api_errors.error_of(error) if isinstance(error, PromptmillError) else as_api_error(error)
        return self.refusal(found.status, found.message, found.headers)


class _Calls:
    """Calls the service for one of the paths."""

    def __init__(self, service: Service, path: str) -> None:
        self._service, self._path = service, path
        self._endpoints = Endpoints(service)

    async def config_of(self, name: str, request: HttpRequest) -> ModelConfig:
        """Return the configuration of the model `name` for the client. Raises `ApiError`."""
        if name in system_one.LATEST and name not in self._service.offered:
            name = ""
        return self._endpoints.config_of(name, owner_of(request)).capped

    async def decided(
        self, config: ModelConfig, evidence: Evidence, questions: Sequence[ClientQuestion], request: HttpRequest
    ) -> Decided:
        """Return the answers to the questions. Raises `ApiError`."""
        try:
            with logged(self._path, client_of(request)):
                return await decided(self._service, config, evidence, questions)
        except PromptmillError as error:
            as_sent = as_written(error, evidence.conversation, config.file_rule)
            raise api_errors.error_of(as_sent, "/v1/responses") from None


def _wait_s(request: HttpRequest) -> float | None:
    """Return how many seconds the client waits; None if no limit of this client is known."""
    is_typesafe = "typesafe" in request.headers.get("user-agent", "").lower() or "x-typesafe-sdk" in request.headers
    return WAIT_S if is_typesafe else None


async def _on_invalid(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, InvalidBodyError)
    return Response(orjson.dumps({"detail": error.detail}), 422, media_type="application/json")


def _json(body: JsonDict) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
