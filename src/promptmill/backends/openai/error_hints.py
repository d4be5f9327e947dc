"""Hints on the user's next step after an error response. The first row of `HINTS` that matches the response is used.

A row's words are the providers' own, in lower case. Gateways pass them on, so each row applies to all endpoints.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import NamedTuple

from promptmill.backends.openai.error_body import Cause, ErrorBody
from promptmill.core.errors import READS_IMAGES


class Hint(NamedTuple):
    """A hint for error bodies that match `words` and have one of `statuses`."""

    statuses: Container[int]
    words: re.Pattern[str]
    text: str
    """The hint. `{0}` is replaced by the text that the group in `words` matched."""
    is_in_quotations: bool = True
    """Whether words inside URLs and quotations also match."""
    causes: Container[Cause] = frozenset(Cause)
    """The causes for which the hint is meant."""

    def of(self, status: int, body: ErrorBody, cause: Cause) -> str | None:
        """Return the hint for a response; None if the row does not match."""
        if status not in self.statuses or cause not in self.causes:
            return None
        match = self.words.search(body.text if self.is_in_quotations else body.words)
        return None if match is None else self.text.format(*match.groups())


_FORBIDDEN, _REFUSED, _BROKEN = frozenset({403}), frozenset({400, 422}), range(500, 1000)
_ACCESS = frozenset({Cause.KEY, Cause.MODEL})
_UNSUPPORTED = r".{0,80}(?:support|unavailable|invalid|deprecated|not allowed)"

HINTS = (
    Hint(
        _FORBIDDEN,  # Cloudflare's pages for clients that it considers bots
        re.compile(r"just a moment\.\.\.|attention required!|you have been blocked|enable javascript and cookies"),
        "A bot filter in front of the endpoint blocked this client; try another network, or ask its operator.",
    ),
    Hint(
        _FORBIDDEN,
        re.compile(r"country|territory|location is not supported|your region|region (?:is )?not (?:supported|allowed)"),
        "The provider refuses this account or region; another key will not help.",
        is_in_quotations=False,
        causes=_ACCESS,
    ),
    Hint(
        _FORBIDDEN,
        re.compile(r"(?:does not|doesn't|not) have access to (?:the )?model|model.{0,60}not.{0,20}access"),
        "The key is valid, but its account or project may not use this model: allow it there, or name another.",
        is_in_quotations=False,
        causes=_ACCESS,
    ),
    Hint(
        _FORBIDDEN,
        re.compile(r"organi[sz]ation|verif|permission|region|country|territory|plan|access|scope|project|allow"),
        "The key is valid but lacks a permission; the message above names it.",
        is_in_quotations=False,
        causes=_ACCESS,
    ),
    Hint(
        _REFUSED,
        re.compile(r"max_completion_tokens' instead"),
        "Set `sampling_params.max_tokens: null` and `extra_params.max_completion_tokens: N`.",
    ),
    Hint(
        _REFUSED,
        re.compile(r"max_(?:completion_|output_)?tokens.{0,80}(?:large|at most|maximum|exceed|less than|between)"),
        "Lower `max_tokens`.",
    ),
    Hint(_REFUSED, re.compile(rf"(temperature|top_p){_UNSUPPORTED}"), "Leave `{0}` out."),
    Hint(
        _REFUSED,
        re.compile(rf"(?:response_format|json_schema){_UNSUPPORTED}"),
        "Leave `response_format` out, or use another model.",
    ),
    Hint(
        _REFUSED,  # llama.cpp's words
        re.compile(r"failed to parse grammar|json schema conversion failed"),
        "The server cannot turn this schema into a grammar: use fewer and simpler fields, or ask without a schema.",
    ),
    Hint(
        _REFUSED,  # the words of Anthropic and Google
        re.compile(r"compiled grammar is too large|too many states for serving"),
        "The provider cannot enforce so large a schema: use fewer fields and values, or split the question.",
    ),
    Hint(
        _REFUSED,
        re.compile(
            r"not (?:a )?multimodal|(?:not|n't) (?:support|accept|have) (?:image|vision|multimodal)"
            r"|(?:image|vision).{0,40}not supported|no endpoints found that support image"
        ),
        READS_IMAGES,
    ),
    Hint(
        _REFUSED,  # the words of LM Studio and Ollama
        re.compile(r"must be a base64 encoded image|invalid image input"),
        "If the image is on the web, set `fetch_images: true`, or send a local file: the endpoint fetches none.",
    ),
    Hint(
        _REFUSED,  # the words of OpenAI and vLLM, and those of aiohttp, which vLLM uses
        re.compile(
            r"(?:error|fail(?:ed|ure|ing|s)?|timeout|unable) .{0,20}(?:while |to )?(?:download|fetch|retriev)"
            r"|\b\d{3}, message='[^']*', url="
        ),
        "The endpoint could not download the image: correct its URL, or send a local file.",
    ),
    Hint(
        _BROKEN,  # the words of vLLM's `EngineDeadError`, and of vLLM's replies to later requests
        re.compile(r"enginecore encountered an issue|engine ?core.{0,40}(?:died|dead)|background loop has errored"),
        "vLLM's engine has stopped; the server's own log states the reason. Restart the server.",
    ),
    Hint(
        _BROKEN,  # the words of Ollama, PyTorch and llama.cpp
        re.compile(r"more system memory|out of memory|failed to allocate|insufficient memory"),
        "The server's machine lacks memory for this model: use a smaller model, or free memory there.",
    ),
)
