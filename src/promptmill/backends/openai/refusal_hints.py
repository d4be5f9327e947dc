"""Hints for error responses whose status and body say more than their code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urljoin, urlsplit, urlunsplit

from promptmill.backends.openai.base_url import COMPLETIONS
from promptmill.backends.openai.endpoint import Endpoint, is_placeholder_key, names_key_variable
from promptmill.backends.openai.error_body import ErrorBody
from promptmill.core.errors import Code, PromptmillError, redact

# What an endpoint says to plain HTTP on a port that speaks TLS: nginx, Apache, Go, Tomcat, Node behind a balancer.
SPOKE_TLS = ("https port", "ssl-enabled", "requires tls", "https server")
_MAX_TOKENS = re.compile(r"max_(?:completion_|output_)?tokens.{0,80}(?:large|at most|maximum|exceed|less than|between)")
_NO_IMAGES = re.compile(
    r"not (?:a )?multimodal|(?:not|n't) (?:support|accept|have) (?:image|vision|multimodal)"
    r"|(?:image|vision).{0,40}not supported|no endpoints found that support image"
)
_NO_SCHEMA = "Leave `response_format` (--schema, --set sampling_params.response_format) out, or use another model."
_REFUSED_OPTION = re.compile(
    r"(temperature|top_p|response_format|json_schema).{0,80}(?:support|unavailable|invalid|deprecated|not allowed)"
)
_LEAVE_OUT = {
    "temperature": "Leave `temperature` (--temperature) out.",
    "top_p": "Leave `top_p` (--top-p) out.",
    "response_format": _NO_SCHEMA,
    "json_schema": _NO_SCHEMA,
}
# Ollama's words, PyTorch's, llama.cpp's.
_NO_MEMORY = re.compile(r"more system memory|out of memory|failed to allocate|insufficient memory")
# vLLM's `EngineDeadError`, and what it says of later requests.
_DEAD_ENGINE = re.compile(
    r"enginecore encountered an issue|engine ?core.{0,40}(?:died|dead)|background loop has errored"
)
_NO_MODEL = re.compile(r"(?:does not|doesn't|not) have access to (?:the )?model|model.{0,60}not.{0,20}access")
# OpenAI's; vLLM's own, and aiohttp's inside it.
_NO_DOWNLOAD = re.compile(
    r"(?:error|fail(?:ed|ure|ing|s)?|timeout|unable) .{0,20}(?:while |to )?(?:download|fetch|retriev)"
    r"|\b\d{3}, message='[^']*', url="
)
_PLACE = re.compile(r"country|territory|location is not supported|your region|region (?:is )?not (?:supported|allowed)")
# Cloudflare's pages to whom it takes for a program.
_BOT_BLOCK = re.compile(r"just a moment\.\.\.|attention required!|you have been blocked|enable javascript and cookies")
_ABOUT_MODELS = re.compile(r"model|deployment|engine")
_PERMISSION = re.compile(r"organi[sz]ation|verif|permission|region|country|territory|plan|access|scope|project|allow")


def hint_of(status: int, headers: Mapping[str, str], body: ErrorBody, endpoint: Endpoint) -> str | None:
    """Return what to do about a response with `status`; None where its code says it all."""
    if 300 <= status < 400:
        return _redirected(headers.get("Location", ""), endpoint)
    if any(words in body.text for words in SPOKE_TLS) and endpoint.url.startswith("http:"):
        return "Write https:// instead of http:// in `base_url`."
    if status in {404, 405} and not _ABOUT_MODELS.search(body.words):
        return wrong_address(endpoint)
    if status == 403:
        return _forbidden(body)
    if status in {400, 422}:
        return _refused(body)
    if status >= 500 and _DEAD_ENGINE.search(body.text):
        return "vLLM's engine has stopped: the server's own log says why. Restart the server."
    if status >= 500 and _NO_MEMORY.search(body.text):
        return "The server's machine lacks memory for this model: use a smaller one, or free memory there."
    return None


def with_key_hint(endpoint: Endpoint, error: PromptmillError, status: int) -> PromptmillError:
    """Return the error of a refusal with what the reader should know about the key that was or was not sent.

    401 and 403 alone are about a missing one: what other statuses say about an account, they say to a key.
    """
    if status not in {401, 403} or error.code is not Code.UNAUTHORIZED:
        return error
    if endpoint.key_note:
        return PromptmillError(error.code, error.message, endpoint.key_note)
    if not {"authorization", "api-key"} & {name.lower() for name in endpoint.headers}:
        return PromptmillError(
            error.code,
            error.message,
            "No key was sent: `export OPENAI_API_KEY=…`, or name another variable with --key-env or `api_key_env`.",
        )
    if status == 401 and endpoint.key_source:
        sent = f"The key sent is {endpoint.key_source}"
        if endpoint.secrets and names_key_variable(endpoint.secrets[0]):
            sent += f", which is the name of a variable: write `api_key_env: {endpoint.secrets[0]}`."
        elif endpoint.secrets and is_placeholder_key(endpoint.secrets[0]):
            sent += ", and is the placeholder of an example; put your own key there."
        elif endpoint.secrets and " " in endpoint.secrets[0]:
            sent += ", and holds a space, which keys seldom have; copy it again."
        else:
            sent += "; correct it."
        return PromptmillError(error.code, error.message, sent)
    return error


def with_scheme_hint(endpoint: Endpoint, error: PromptmillError) -> PromptmillError:
    """Return the error of a connection lost to an endpoint that has never answered."""
    if endpoint.url.startswith("http:"):
        hint = "It has never answered: does the port want https:// in `base_url`? Else try again."
    elif not endpoint.own:  # nobody is to send a key in clear
        return error
    else:
        hint = (
            "It has never answered: does it speak plain HTTP, not TLS? Then write http:// instead of https:// in "
            "`base_url`; `promptmill check` finds out."
        )
    return PromptmillError(error.code, error.message, hint)


def _forbidden(body: ErrorBody) -> str | None:
    if _BOT_BLOCK.search(body.text):
        return "A bot block stands before it and not the key is refused; try another network, or ask its operator."
    if _PLACE.search(body.words):
        return "The provider refuses this account or place; another key will not help."
    if _NO_MODEL.search(body.words):
        return "The key is valid, but its account or project may not use this model: allow it there, or name another."
    if _PERMISSION.search(body.words):
        return "The endpoint knows the key; what is missing is said above."
    return None


def _refused(body: ErrorBody) -> str | None:
    if "max_completion_tokens' instead" in body.text:
        return (
            "Set `max_tokens: null` and `extra_params: {max_completion_tokens: N}` (--set "
            "sampling_params.max_tokens=null --set extra_params.max_completion_tokens=N)."
        )
    if _MAX_TOKENS.search(body.text):
        return "Lower `max_tokens`."
    if name := _REFUSED_OPTION.search(body.text):
        return _LEAVE_OUT[name[1]]
    if _NO_IMAGES.search(body.text):
        return "Choose a model that reads images, or leave them out."
    if _NO_DOWNLOAD.search(body.text):
        return "The endpoint could not fetch the image: correct its URL, or send a file that is here."
    return None


def wrong_address(endpoint: Endpoint) -> str:
    """Return what to check where something other than the API answers."""
    url = urlunsplit(urlsplit(endpoint.url)._replace(query=""))
    path = urlsplit(url).path
    if not path.endswith(COMPLETIONS) and "/v1/" in path:  # a line of a batch file says itself what it asks
        return f"Asked was {redact(url)}: the endpoint has no {path[path.rindex('/v1/') :]}, which the line asks for."
    twice = " `/v1` is in it twice." if "/v1/v1/" in url else ""
    if path.endswith(f"/v1{COMPLETIONS}") and not twice:
        return (
            f"Asked was {redact(url)}. A web interface or another program may be there; `promptmill check` looks for "
            "the API, which has a path or port of its own."
        )
    return f"Asked was {redact(url)}.{twice} A `base_url` usually ends in /v1; `promptmill check` looks for it."


def _redirected(location: str, endpoint: Endpoint) -> str | None:
    if not location:
        return None
    try:
        there = urlsplit(urljoin(endpoint.url, location))
        port = f":{there.port}" if there.port else ""
    except ValueError:
        return None
    host = f"[{there.hostname}]" if ":" in (there.hostname or "") else there.hostname or ""
    path = there.path.rstrip("/")
    shown = redact(f"{there.scheme}://{host}{port}{path.removesuffix(COMPLETIONS)}"[:200], endpoint.secrets)
    if path.endswith(COMPLETIONS):
        return f"It redirects to {shown}; put that into `base_url`."
    return f"It redirects to {shown}, which is not the API; correct `base_url`, or sign in where it sends you."
