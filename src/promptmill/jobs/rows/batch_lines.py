"""Reads lines of Batch files in OpenAI's format.

| provider | a line |
|---|---|
| OpenAI, vLLM, Groq | `{"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}` |
| Azure | like OpenAI's, with the url `/chat/completions` |
| Mistral, Together | `{"custom_id", "body"}` |
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

from promptmill.config.backends import OTHER_PATHS
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.values import JsonObject
from promptmill.core.wording import shape

CHAT = "/chat/completions"
TOKEN_LIMITS = MappingProxyType({"/completions": "max_tokens", "/responses": "max_output_tokens"})
"""The parameter that limits the length of the answer, by the path of the request, for requests that are not chats."""


class BatchLine(NamedTuple):
    """The request of a line. `path` is the part of the URL after `/v1`; `body` has the format for this path."""

    path: str
    body: JsonObject


def is_batch(line: JsonObject) -> bool:
    """Return whether a line is a complete request of a Batch file."""
    return "custom_id" in line and "body" in line


def read(line: JsonObject, where: str) -> BatchLine:
    """Return the request in a line. Raises `PromptmillError` (`invalid_input`, `unsupported`) that names `where`."""
    custom_id, body = line.get("custom_id"), line.get("body")
    if not isinstance(custom_id, str):
        raise input_error(f"{where}: custom_id is {shape(custom_id)}; give each line its own text.")
    method, url = line.get("method", "POST"), line.get("url", CHAT)
    path = url.removeprefix("/v1") if isinstance(url, str) else ""
    if method != "POST" or path not in {CHAT, *OTHER_PATHS}:
        known = ", ".join(f"/v1{path}" for path in (CHAT, *sorted(OTHER_PATHS)))
        raise PromptmillError(Code.UNSUPPORTED, f"{where}: only POST to {known} is supported.", "")
    if not isinstance(body, dict):
        raise input_error(f"{where}: body is {shape(body)}; send the body of a request.")
    return BatchLine(path, body)
