"""OpenAI's error format for every status, and its fields for each of promptmill's error codes."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from promptmill.core.errors import Code, PromptmillError, redact
from promptmill.core.feature import bug
from promptmill.core.request import BESIDE, PASSED_ON, Conversation, Sampling
from promptmill.core.values import JsonDict
from promptmill.core.wording import did_you_mean, shape
from promptmill.images.load import names_of
from promptmill.system.call_files import FileRule

_log = logging.getLogger(__name__)
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_NO_RETRY = {"x-should-retry": "false"}
_WAIT = {"retry-after": "5"}
_RETRY = {Code.RATE_LIMITED: _WAIT, Code.SHUTDOWN: _WAIT, Code.REPLACED: _WAIT, Code.ENGINE_DIED: _WAIT}
"""Errors after which a client should retry. For all other errors, promptmill has already retried, and each of the two
automatic retries of OpenAI's clients would repeat all these attempts."""
_STATUS: dict[Code, tuple[int, str | None]] = {
    **dict.fromkeys((Code.INVALID_INPUT, Code.INVALID_CONFIG, Code.EMPTY_PROMPT, Code.BAD_REQUEST), (400, None)),
    Code.UNSUPPORTED: (400, "unsupported_parameter"),
    Code.INVALID_IMAGE: (400, "invalid_image"),
    Code.CONTEXT_LENGTH: (400, "context_length_exceeded"),
    Code.CONTENT_FILTER: (400, "content_filter"),
    Code.TRUNCATED: (400, "truncated"),
    Code.NOT_FOUND: (404, "model_not_found"),
    Code.REQUEST_TOO_LARGE: (413, "request_too_large"),
    Code.INVALID_ANSWER: (422, "invalid_answer"),
    Code.RATE_LIMITED: (429, "rate_limit_exceeded"),
    Code.INSUFFICIENT_QUOTA: (429, "insufficient_quota"),
    Code.BUDGET: (429, "insufficient_quota"),
    **dict.fromkeys((Code.SHUTDOWN, Code.REPLACED, Code.ENGINE_DIED), (503, None)),
    **dict.fromkeys((Code.TIMEOUT, Code.ITEM_TIMEOUT, Code.DEADLINE), (504, None)),
}
"""The status and `code` for an error of promptmill. Any other error is a 500 with promptmill's code."""
_PARAMS = {Code.CONTEXT_LENGTH: "messages", Code.NOT_FOUND: "model"}
"""The invalid field of an error that does not name one."""
IN_RESPONSES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}
"""Fields of `/v1/responses`, by their names in chat completions."""
_NAMED_FIRST = re.compile(rf"(?:{'|'.join(IN_RESPONSES)})\b")
_TOO_LONG = (
    "This model's maximum context length is exceeded (context_length_exceeded). "  # LangChain and litellm look for this
)
_FIELDS = frozenset({"messages", "input", "model", *BESIDE, *PASSED_ON, *Sampling.model_fields})
# The pattern has no possessive group around alternatives, which Python 3.11.2 matches wrongly (python/cpython#106052).
_PARAM = re.compile(r"(?:sampling_params\.)?+([a-z_]+(?:\[\d+\]|\.[a-z_]+)*)(?=[:; ])")


@dataclass(eq=False)
class ApiError(Exception):
    """An error in the format of OpenAI's API."""

    status: int
    message: str
    param: str | None = None
    """The invalid field of the body."""
    code: str | None = None
    """A code for programs."""
    headers: Mapping[str, str] | None = None

    def body(self) -> JsonDict:
        """Return the body of the reply; it is also an event of a stream.

        >>> ApiError(404, "There is no such file.").body()["error"]["type"]
        'not_found_error'
        """
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Return the HTTP reply."""
        return Response(orjson.dumps(self.body()), self.status, self.headers, "application/json")


def unsupported(
    field: str,
    why: str = ", and leaving it out may change the answer; do not send it",
    known: Iterable[str] = (),
) -> ApiError:
    """Return the error for a field that this server does not support. If `known` has a similar name, the error suggests
    it in place of `why`."""
    name = field[:60]
    meant = did_you_mean(name, known, likeness=0.8)  # higher than usual: most unknown fields are the API's, not typos
    said = f"; {meant}" if meant else f"{why}."
    return ApiError(400, f"`{name}` is not supported here{said}", name, "unsupported_parameter")


def wrong_type(field: str, value: object, wanted: str) -> ApiError:
    """Return the error for a field with a value of a wrong type, or without a value."""
    code = "missing_required_parameter" if value is None else "invalid_type"
    return ApiError(400, f"`{field}` is {shape(value)}; send {wanted}.", field, code)


def error_of(error: PromptmillError, path: str = "") -> ApiError:
    """Convert an error of promptmill. `param` is the field that begins the message or that the endpoint blames.

    `path`: the path of the request, on which the name of the conversation's field depends.
    """
    status, code = _STATUS.get(error.code, (500, str(error.code)))
    headers = {} if status in {400, 404, 413, 422} else _RETRY.get(error.code, _NO_RETRY)
    said: Mapping[str, object] = (error.said or {}).get("error") or {}
    found = (_PARAM.match(text) for text in (error.message, f"{said.get('param')} "))
    fields = (name for each in found if each and re.split(r"\W", name := each[1])[0] in _FIELDS)
    param = next(fields, _PARAMS.get(error.code))
    if param and path in {"/v1/responses", "/v1/embeddings"}:
        param = "input" if param.startswith("messages") else IN_RESPONSES.get(param, param)
    if code is None and status == 400 and isinstance(own := said.get("code"), str) and own.isidentifier():
        code = own
    message = redact(str(error)).removeprefix("sampling_params.")
    if path == "/v1/responses":
        message = (
            _NAMED_FIRST.sub(lambda match: IN_RESPONSES[match[0]], message, count=1)
            if _NAMED_FIRST.match(message)
            else message
        )
    return ApiError(status, _TOO_LONG * (error.code is Code.CONTEXT_LENGTH) + message, param, code, headers)


def as_written(error: PromptmillError, conversation: Conversation, files: FileRule) -> PromptmillError:
    """Return `error` with the paths of images as the client wrote them: resolved paths would show the server's
    folders."""
    message = error.message
    for image in conversation.sourced:
        names = (name for name in names_of(image.source, files) if name in message)
        if name := next(names, ""):
            message = message.replace(name, image.source[:80])
    if message == error.message:
        return error
    changed = PromptmillError(error.code, message, error.hint)
    changed.said = error.said
    return changed


def as_api_error(error: Exception) -> ApiError:
    """Return `error` if it is an `ApiError`. Any other error is a bug: log where it occurred, but not its text, which
    may quote a prompt."""
    if isinstance(error, ApiError):
        return error
    place = traceback.extract_tb(error.__traceback__)[-1]
    _log.error("a line of a batch: %s at %s:%s", type(error).__name__, Path(place.filename).name, place.lineno)
    return _bug(error)


def _bug(error: Exception) -> ApiError:
    return ApiError(500, bug(error), None, "internal")


async def on_error(_: HttpRequest, error: Exception) -> Response:
    """Reply with an `ApiError`, or with a converted error of promptmill."""
    assert isinstance(error, ApiError | PromptmillError)
    return (error if isinstance(error, ApiError) else error_of(error)).response()


async def on_http_error(request: HttpRequest, error: Exception) -> Response:
    """Reply to an error that Starlette raises: an unknown path, a wrong method, a body that is not a form."""
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, "" if error.status_code in {404, 405} else error.detail, error.headers, request)


def refusal(
    status: int, message: str, headers: Mapping[str, str] | None = None, request: HttpRequest | None = None
) -> Response:
    """Return the reply to a request that no handler receives."""
    if request is not None and not message:
        message = f"There is no {request.method} {request.url.path}; see docs/openai-server.md for the paths here."
    code = {401: "invalid_api_key", 404: "unknown_url", 405: "method_not_allowed", 413: "request_too_large"}
    return ApiError(status, message or "Not allowed.", None, code.get(status), headers).response()


async def on_any_error(_: HttpRequest, error: Exception) -> Response:
    """Reply to a request that failed because of a bug. Starlette raises `error` again, so the bug is logged."""
    return _bug(error).response()
