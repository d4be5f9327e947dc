"""The paths that need no stored objects: models, chat completions, responses and embeddings."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from promptmill.backends import registry
from promptmill.backends.protocol import Call, Completion, Facts, Failure
from promptmill.config.model_config import DEFAULT, ModelConfig
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import PASSED_ON, SYSTEM_ROLES, Conversation, Request, required_of
from promptmill.core.values import JsonDict
from promptmill.features.openai_server import embedding_inputs
from promptmill.features.openai_server.api_errors import ApiError, as_written, error_of, wrong_type
from promptmill.features.openai_server.bodies import CHAT, EMBEDDINGS, RESPONSES, model_of, reply_body, request_of
from promptmill.features.openai_server.choices import note_on
from promptmill.features.openai_server.rerank import RERANK, Ranking, api_of
from promptmill.features.openai_server.streams import ChatEvents, Events, EventStream, ResponseEvents, Show, unless_left
from promptmill.http.token import configured
from promptmill.server.tool_calls import owner_of
from promptmill.server.tools import config_of_call
from promptmill.service.service import Service
from promptmill.system.call_files import FileRule
from promptmill.system.logs import CALLS

_log = logging.getLogger(CALLS)
_NAMED_IN = "On the server, `models:` in parameter.yaml names them, and `promptmill models` lists them."
_STRANGE = re.compile(r"[^\w./@+-]")  # not allowed in a name from the client: spaces, line feeds, …
_LISTS, _MANY = (
    ("messages", "input", "tools"),
    1000,
)  # more items than a conversation has: read in a thread (10 µs each)
PATHS = (CHAT, RESPONSES, EMBEDDINGS)
_STREAMS: dict[str, Callable[[JsonDict, str, int], Events]] = {CHAT: ChatEvents, RESPONSES: ResponseEvents}


class EndpointRequest(NamedTuple):
    """A request and the settings of its model."""

    path: str
    body: JsonDict
    model: str
    """The model's name in the body, or the default model's name."""
    request: Request
    config: ModelConfig
    client: str
    """The name of the client program, for the log."""


class Endpoints:
    """The handlers of the module's paths. They all answer from one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        tokens = service.config.operator.client_limits.tokens
        self._allowed = {token.owner: tokens[name].models for name, token in configured(tokens).items()}

    async def models(self, request: HttpRequest) -> Response:
        """Reply with the models that a client may name."""
        owner = owner_of(request)
        models = [self._model(name, owner) for name in self._usable(owner)]
        return _json({"object": "list", "data": models, "models": [_in_short(model) for model in models]})

    async def model(self, request: HttpRequest) -> Response:
        """Reply with the description of one model."""
        if not (name := request.path_params["id"]):
            raise HTTPException(404)
        return _json(self._model(name, owner_of(request)))

    async def reply(self, request: HttpRequest) -> Response:
        """Answer a request to one of `PATHS`."""
        path, body, owner, client = request.url.path, await body_of(request), owner_of(request), client_of(request)
        if path == EMBEDDINGS and embedding_inputs.has_pictures(body):
            config = self.config_of(name := model_of(body), owner)
            requests = embedding_inputs.requests_of(body, config)
            answering = self.vectors(requests, config.capped, client)
            answer = await unless_left(request.receive, answering)
            return await _reply(path, body, answer, name or config.name)
        asked = await self.asked(path, body, owner, client)
        stream = asked.body.get("stream")
        if not isinstance(stream, bool | None):
            raise wrong_type("stream", stream, "true or false")
        if stream and path in _STREAMS:
            events = _STREAMS[path](asked.body, asked.model, asked.request.sampling.n or 1)
            has_logprobs = bool(asked.request.extra.get("logprobs"))  # log probabilities come with the complete answer
            return EventStream(events, lambda show: self.answer(asked, None if has_logprobs else show))
        answer = await unless_left(request.receive, self.answer(asked))
        return await _reply(path, asked.body, answer, asked.model)

    async def rerank(self, request: HttpRequest) -> Response:
        """Rank documents by a reranker, or by the vectors of a model."""
        body, owner, client = await body_of(request), owner_of(request), client_of(request)
        ranking, name = Ranking.of(body), model_of(body)
        config = self.config_of(name, owner)
        if (api := api_of(config)) is not None:
            asked = EndpointRequest(RERANK, body, name or config.name, ranking.request(api), config.capped, client)
            read = ranking.read(await unless_left(request.receive, self.answer(asked)), asked.model)
            return _json(read | note_on(body))
        asked = await self.asked(EMBEDDINGS, ranking.embedded(body, config), owner, client)
        answer = await unless_left(request.receive, self.answer(asked._replace(path=RERANK)))
        vectors = partial(reply_body, EMBEDDINGS, asked.body, answer, asked.model)
        return await asyncio.to_thread(lambda: _json(ranking.reply(vectors()) | note_on(body)))

    def _offered(self, owner: str) -> list[str]:
        allowed = self._allowed.get(owner)
        return [name for name in self._service.offered if allowed is None or name in allowed]

    def _usable(self, owner: str) -> list[str]:
        offered = set(self._offered(owner))
        return [name for name in self._service.usable if name in offered]

    def _model(self, name: str, owner: str) -> JsonDict:
        created = int(self._service.calls.started)
        return {"id": name, "object": "model", "created": created, "owned_by": self.config_of(name, owner).backend}

    def config_of(self, name: str, owner: str) -> ModelConfig:
        """Return a model's configuration for a token's owner. `name`: the model's name here or at its backend.

        Raises `ApiError` (404 if the token may not use the model).
        """
        allowed = self._allowed.get(owner)
        try:
            if not name or name in {*self._service.offered, DEFAULT}:
                config = self._service.config_of(name)
                if allowed is None or config.name in allowed:
                    return config
            for config in map(self._service.config_of, self._usable(owner)):
                if config.model == name:
                    return config
        except PromptmillError as error:
            raise error_of(error) from None
        names = [*self._offered(owner), *(self._service.config_of(each).model for each in self._usable(owner))]
        known = ", ".join([*dict.fromkeys(filter(None, names))][:50])
        unknown = f"There is no model {name[:60]!r}; models here: {known}."
        raise ApiError(404, f"{unknown} {_NAMED_IN}", "model", "model_not_found")

    @property
    def files(self) -> FileRule:
        """The rule for files that requests name."""
        return self._service.config.file_rule

    @property
    def has_several(self) -> bool:
        """Whether clients may choose among several models; then each row of a job must name its model."""
        return len(self._usable("")) > 1

    async def resolved_config(self, name: str) -> ModelConfig:
        """Return the configuration for a job on a model. Call it after the job's lines were checked. Raises the errors
        of `config_of`, and `PromptmillError`."""
        return await self._service.resolved_config(self.config_of(name, ""))

    async def asked(self, path: str, body: JsonDict, owner: str, client: str = "-") -> EndpointRequest:
        """Return the request that `body` describes, with its model. Raises `ApiError`."""
        name = model_of(body)
        config = self.config_of(name, owner)
        is_long = any(isinstance(body.get(name), list) and len(body[name]) > _MANY for name in _LISTS)
        request = await asyncio.to_thread(request_of, path, body) if is_long else request_of(path, body)
        if request.path and request.path not in registry.other_paths(config):
            raise ApiError(
                400, f"The backend {config.backend} of this model makes no embeddings.", "model", "unsupported"
            )
        changes = request.sampling.given() | ({} if request.path else dict(request.extra))
        try:
            of_call = {name: value for name, value in changes.items() if name not in PASSED_ON}
            config = await config_of_call(self._service, config, None, of_call)
        except PromptmillError as error:
            raise error_of(error) from None
        settings = config.settings
        if request.path:
            request = request.changed(sampling=settings.sampling_params.protection())
        else:
            conversation = request.conversation
            if conversation.messages[0].role not in SYSTEM_ROLES:  # the client's own system prompt takes precedence
                conversation = conversation.with_system(settings.system_prompt)
            conversation = conversation.composed("", registry.shown_by(config))
            passed_on = {name: request.extra[name] for name in request.extra.keys() & PASSED_ON}
            extra = {**settings.extra_params, **passed_on} if passed_on else settings.extra_params
            request = Request(0, conversation, settings.sampling_params, extra, required=required_of(changes))
        return EndpointRequest(path, body, name or config.name, request, config, client)

    async def vectors(self, requests: Sequence[Request], config: ModelConfig, client: str) -> Completion:
        """Return the vectors of requests with pictures as one answer. Raises `ApiError` if one of them fails."""
        try:
            with logged(EMBEDDINGS, client):
                outcomes = await self._service.generate(requests, Call(Facts(total=len(requests))), config=config)
                return embedding_inputs.joined(outcomes)
        except PromptmillError as error:
            every = Conversation(tuple(message for one in requests for message in one.conversation.messages))
            raise error_of(as_written(error, every, config.file_rule), EMBEDDINGS) from None

    async def answer(self, asked: EndpointRequest, show: Show | None = None) -> Completion:
        """Answer a request. `show` is called with the answer so far while it grows. Raises `ApiError`."""
        call = Call(Facts(total=1, keep_raw=bool(asked.request.sampling.n)), preview=show)
        try:
            with logged(asked.path, asked.client):
                (outcome,) = await self._service.generate([asked.request], call, config=asked.config)
                return (
                    outcome if isinstance(outcome, Completion) else _cut_answer(outcome, asked.request.sampling.n or 1)
                )
        except PromptmillError as error:
            raise error_of(as_written(error, asked.request.conversation, asked.config.file_rule), asked.path) from None


@contextlib.contextmanager
def logged(path: str, client: str) -> Iterator[None]:
    """Log the call of a client, with the code of the error that ends it."""
    began, code = time.monotonic(), str(Code.INTERNAL)
    try:
        yield
        code = "ok"
    except PromptmillError as error:
        code = str(error.code)
        raise
    except asyncio.CancelledError:
        code = "cancelled"
        raise
    finally:
        level, taken = logging.INFO if code in {"ok", "cancelled"} else logging.WARNING, time.monotonic() - began
        _log.log(level, "path=%s client=%s code=%s seconds=%.3f", path, client, code, taken)


def _cut_answer(failure: Failure, wanted: int) -> Completion:
    """If `max_tokens` cut the one `wanted` answer, return what OpenAI's API returns: the part before the cut, and the
    finish reason. The part may be `""`: programs test a connection with a `max_tokens` of 1. Raises the error of any
    other failure."""
    if failure.error.code is not Code.TRUNCATED or failure.error.said is not None or wanted > 1:
        raise failure.error
    return Completion(failure.part, "length", failure.usage, failure.reasoning or None, attempts=failure.attempts)


async def body_of(request: HttpRequest) -> JsonDict:
    """Return the JSON object in the body of a request. Raises `ApiError`."""
    try:
        body: Any = orjson.loads(await request.body())
    except orjson.JSONDecodeError:
        raise ApiError(400, "The body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The body is not a JSON object.")
    return body


async def _reply(path: str, body: JsonDict, answer: Completion, model: str) -> Response:
    """Return the reply to a request. The numbers of its vectors are written in a thread: three million take a second.

    Raises `ApiError`."""
    reply = partial(reply_body, path, body, answer, model)
    return await asyncio.to_thread(lambda: _json(reply())) if path == EMBEDDINGS else _json(reply())


def _json(body: JsonDict) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")


def _in_short(model: JsonDict) -> JsonDict:
    """Convert a model in OpenAI's list to TypeSafe's form, because TypeSafe's clients read another field of the
    reply."""
    began = dt.datetime.fromtimestamp(model["created"], dt.UTC).date().isoformat()
    return {"name": model["id"], "description": f"on the backend {model['owned_by']}", "release_date": began}


def client_of(request: HttpRequest) -> str:
    """Return the name of a client program and its address, for the log."""
    agent = _STRANGE.sub("_", request.headers.get("user-agent", "-")[:40])
    return f"{agent}@{request.client.host}" if request.client else agent
