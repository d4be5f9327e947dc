"""The hint of a refusal fits its cause. A comment names the source of each body."""

from __future__ import annotations

import datetime as dt
import ssl
import time
from dataclasses import replace
from email.utils import format_datetime
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from promptmill.backends.openai.asked_wait import asked_wait_s
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.failures import RetryDecision, classify_exception
from promptmill.backends.openai.providers import profile_at
from promptmill.backends.openai.refusals import refuses_key, with_key_hint, with_scheme_hint
from promptmill.backends.openai.reply import read_response
from promptmill.core.errors import Code, PromptmillError

_URL = "http://127.0.0.1:8000/v1/chat/completions"
_ENDPOINT = Endpoint(_URL, "127.0.0.1:8000", {}, (), profile_at(urlsplit(_URL)))
_NGINX = b"<html>\r\n<head><title>404 Not Found</title></head>\r\n<body><hr><center>nginx/1.24.0</center></body></html>"


def _error(status: int, body: bytes, url: str = _URL, **headers: str) -> PromptmillError:
    found = read_response(status, headers, body, replace(_ENDPOINT, url=url))
    assert isinstance(found, RetryDecision)
    return found.error


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        # OpenAI, community.openai.com/t/1229498
        (403, b'{"error": {"message": "Your organization must be verified to use the model `o3`."}}', "lacks a perm"),
        # OpenAI, as in evidence.jsonl
        (403, (b'{"error": {"code": "unsupported_country_region_territory", "message": "Country, region, or territory '
         b'not supported"}}'), "another key will not help"),
        # Cloudflare's challenge
        (403, b"<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>", "A bot filter"),
        # Azure OpenAI, github.com/holoviz/lumen/pull/1087
        (400, (b'{"error": {"message": "Unsupported value: \'temperature\' does not support 0.2 with this model.", '
         b'"param": "temperature"}}'), "Leave `temperature`"),
        # DeepSeek, github.com/ItzCrazyKns/Vane/issues/969
        (400, b'{"error": {"message": "This response_format type is unavailable now"}}', "Leave `response_format`"),
        # OpenAI, gpt-4o-mini with too many
        (400, b'{"error": {"message": "max_tokens is too large: 100000. This model supports at most 16384 tokens."}}',
         "Lower `max_tokens`."),
        # OpenAI, of a model that thought up to the limit
        (400, (b'{"error": {"message": "Could not finish the message because max_tokens or model output limit was '
         b'reached. Please try again with higher max_tokens."}}'), "`max_tokens: 4096`"),
        # vLLM, entrypoints/chat_utils.py
        (400, b'{"object": "error", "message": "qwen is not a multimodal model", "code": 400}', "reads images"),
        # nginx, ngx_http_special_response.c
        (400, b"<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>", "https://"),
        # Go, net/http/server.go
        (400, b"Client sent an HTTP request to an HTTPS server.\n", "https://"),
        # vLLM, v1/engine/exceptions.py
        (500, (b'{"error": {"message": "EngineCore encountered an issue. See stack trace (above) for the root cause.", '
         b'"type": "InternalServerError", "code": 500}}'), "own log states the reason. Restart the server."),
        # OpenAI, as in evidence.jsonl
        (403, (b'{"error": {"message": "Project `proj_a` does not have access to model `gpt-5`", '
         b'"code": "model_not_found"}}'),
         "may not use this model"),
        # OpenAI, o3-mini
        (400, (b'{"error": {"message": "Unsupported parameter: \'max_tokens\' is not supported with this model. Use '
         b'\'max_completion_tokens\' instead.", "param": "max_tokens"}}'), "`sampling_params.max_tokens: null`"),
        # OpenAI, images; vLLM, whose words are aiohttp's
        (400, b'{"error": {"message": "Error while downloading http://h/a.png. Upstream status code: 404."}}',
         "could not download the image"),
        (400, b'{"error": {"message": "404, message=\'Not Found\', url=\'http://h/a.png\'", "code": 400}}',
         "could not download the image"),
        (404, _NGINX, f"The request went to {_URL}. Another program, such as a web interface"),
        (404, b'{"detail": "Not Found"}', "Another program, such as a web interface, may answer there."),  # FastAPI
        # Anthropic, anthropics/anthropic-sdk-python#1185; Google, bethington/ghidra-mcp#440
        (400, b'{"error": {"message": "The compiled grammar is too large, which would cause performance issues."}}',
         "cannot enforce so large a schema"),
        (400, (b'{"error": {"message": "The specified schema produces a constraint that has too many states for '
         b'serving."}}'),
         "cannot enforce so large a schema"),
        (200, b"<!doctype html><title>Sign in</title>", f"The request went to {_URL}."),
    ],
)  # fmt: skip
def test_the_hint_fits(status: int, body: bytes, said: str) -> None:
    assert said in _error(status, body).hint


_ONLY_RESPONSES = (
    "This model is only supported in v1/responses and not in v1/chat/completions.",
    "The requested model cannot be used at /chat/completions. Use the Responses API instead.",
    "This is not a chat model and thus not supported in the v1/chat/completions endpoint. Try v1/responses.",
)


@pytest.mark.parametrize("message", _ONLY_RESPONSES)
@pytest.mark.parametrize("status", [400, 404])
def test_a_model_of_the_responses_api_alone_is_reported_with_the_dialect(status: int, message: str) -> None:
    body = orjson.dumps({"error": {"message": message, "type": "invalid_request_error"}})
    assert "`dialect: responses`" in _error(status, body).hint


def test_other_words_about_responses_are_no_hint_at_the_dialect() -> None:
    assert "dialect" not in (
        _error(400, b'{"error": {"message": "Only streaming responses are supported."}}').hint or ""
    )


_PLACE = {"type": "missing", "loc": ["body", "messages", 0, "seed"], "msg": "Field required"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"detail": [_PLACE]}, "messages.0.seed: Field required"),
        ({"detail": [_PLACE, {"loc": ["body", "top_k"], "msg": "Bad"}]}, "top_k: Bad"),
        ({"object": "error", "message": {"detail": [_PLACE]}}, "messages.0.seed"),
        ({"title": "Validation errors occurred.", "errors": {"seed": ["Not valid."]}}, "occurred.: seed: Not valid."),
        ({"ErrorCode": "X", "Message": "from primary"}, "from primary"),
        ({"Error": {"Code": 1, "Message": "denied"}}, "denied"),
        ({"errorMessage": "task timed out"}, "task timed out"),
    ],
)
def test_a_refusal_has_the_words_of_the_server_and_the_field_that_they_are_about(body: Any, said: str) -> None:
    assert said in _error(422, orjson.dumps(body)).message


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (500, "prompt too long; exceeded max context length by 23 tokens"),
        (422, "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000"),
        (500, "Encountered an error in forward: Prompt length (5000) exceeds maximum input length (4096)."),
        (400, "Unable to submit request because the input token count is 40000 but model only supports up to 32768."),
        (400, "max_tokens must be at least 1, got -904."),
    ],
)
def test_a_prompt_that_is_too_long_is_seen_as_such(status: int, message: str) -> None:
    assert _error(status, orjson.dumps({"error": {"message": message}})).code is Code.CONTEXT_LENGTH


@pytest.mark.parametrize(
    "body",
    [
        {"code": "The caller does not have permission", "error": "Content violates usage guidelines."},
        {"code": "The caller does not have permission", "error": "Your team doesn't have any credits yet."},
    ],
)
def test_a_filter_or_an_empty_account_is_not_reported_as_a_missing_permission(body: Any) -> None:
    assert "permission" not in (_error(403, orjson.dumps(body)).hint or "")


@pytest.mark.parametrize("location", [f"{_URL}/", f"{_URL}?call_id=1", "/v1/chat/completions?call_id=1", _URL])
def test_a_redirect_to_the_same_address_names_no_base_url(location: str) -> None:
    hint = _error(308, b"", Location=location).hint
    assert "It redirects to the" in hint
    assert "base_url" not in hint


def test_an_unknown_model_is_not_reported_as_a_wrong_path() -> None:
    assert "model_name" in _error(404, b'{"error": {"message": "The model `x` does not exist."}}').hint


def test_a_path_without_v1_is_reported() -> None:
    assert "usually ends in /v1" in _error(404, _NGINX, "http://127.0.0.1:8000/chat/completions").hint


def test_a_web_page_is_reported_with_its_title() -> None:
    said = _error(200, b"<!doctype html><title>Open WebUI</title>")
    assert "answered with a web page (Open WebUI)." in said.message
    assert "usually ends" not in said.hint


def test_a_missing_path_of_a_batch_line_is_named() -> None:
    hint = _error(404, _NGINX, "http://127.0.0.1:8000/api/v1/embeddings").hint
    assert hint.endswith("/api/v1/embeddings: the endpoint has no /v1/embeddings, the line's path.")


def test_a_doubled_path_is_reported_and_no_query_is_shown() -> None:
    hint = _error(404, _NGINX, "http://127.0.0.1:8000/v1/v1/chat/completions?key=very-secret").hint
    assert "It contains `/v1` twice." in hint
    assert "very-secret" not in hint


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_names_the_new_base_url_without_credentials(status: int) -> None:
    there = "https://me:very-secret@api.example.com:8443/v1/chat/completions?key=very-secret"
    hint = _error(status, b"", Location=there).hint
    assert hint == "It redirects to https://api.example.com:8443/v1; put that into `base_url`."
    assert "not the API" in _error(status, b"", Location="/login").hint
    assert "very-secret" not in _error(status, b"", Location="https://[::1").hint


def test_tls_on_a_plain_port_and_plain_http_on_a_tls_port_are_named() -> None:
    plain = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
    plain.reason = "WRONG_VERSION_NUMBER"
    assert "Write http:// instead of https://" in classify_exception(plain, _ENDPOINT).error.hint
    lost = PromptmillError(Code.CONNECTION_LOST, "closed.")
    assert "does the port need https://" in with_scheme_hint(_ENDPOINT, lost).hint
    far = replace(_ENDPOINT, url="https://h/v1")
    assert "Then `base_url` begins with http://, not https://." in with_scheme_hint(replace(far, own=True), lost).hint
    assert "http://" not in with_scheme_hint(far, lost).hint, "a key is not to go to a provider in clear"


def test_the_source_of_a_refused_key_is_named() -> None:
    refused = PromptmillError(Code.UNAUTHORIZED, "answered 401.")
    sent = replace(
        _ENDPOINT, headers={"Authorization": "Bearer very-secret"}, key_source="LLM_API_KEY in the environment"
    )
    assert with_key_hint(sent, refused, 401).hint == "The key sent is LLM_API_KEY in the environment; correct it."
    named = replace(sent, secrets=("OPENAI_API_KEY",), key_source="`api_key` of the configuration")
    assert "write `api_key_env: OPENAI_API_KEY`." in with_key_hint(named, refused, 401).hint


@pytest.mark.parametrize("status", [420, 429])
def test_both_statuses_of_a_rate_limit_are_recognized(status: int) -> None:
    assert _error(status, b'{"error": {"message": "Enhance your calm."}}').code is Code.RATE_LIMITED


@pytest.mark.parametrize(
    ("body", "code"),
    [
        # Scaleway, github.com/danny-avila/agents/issues/357
        (
            b'{"error": "INSUFFICIENT QUOTA", "message": "You exceeded your current limit of concurrent requests."}',
            "rate",
        ),
        (
            b'{"error": {"code": "insufficient_quota", "message": "Quota exceeded: too many concurrent requests"}}',
            "rate",
        ),
        (b'{"error": {"message": "Quota exhausted: the limit of 4 requests in flight is reached."}}', "rate"),
        (b'{"error": {"message": "Quota exhausted: the maximum of 5 simultaneous requests is reached."}}', "rate"),
        (b'{"error": {"message": "You exceeded your current quota: 2 pending requests."}}', "rate"),
        (b'{"error": {"code": "insufficient_quota", "message": "You exceeded your current quota."}}', "quota"),
        (b'{"error": {"message": "Insufficient balance: the limit of free requests is used up."}}', "quota"),
        (b'{"error": {"message": "Quota exceeded for concurrent requests, limit: 0"}}', "quota"),
    ],
)
def test_a_limit_of_requests_in_flight_is_no_empty_account(body, code):
    assert _error(429, body).code is {"rate": Code.RATE_LIMITED, "quota": Code.INSUFFICIENT_QUOTA}[code]


@pytest.mark.parametrize(
    "written",
    [
        lambda at: f"{at:.0f}",
        lambda at: f"{1000 * at:.0f}",
        lambda at: dt.datetime.fromtimestamp(at, dt.UTC).isoformat(),
        lambda at: format_datetime(dt.datetime.fromtimestamp(at, dt.UTC), usegmt=True),
    ],
    ids=["seconds since 1970", "milliseconds", "ISO 8601", "HTTP"],
)
def test_retry_after_may_be_a_time(written):
    wait = asked_wait_s({"Retry-After": written(time.time() + 30)}, {}, "")
    assert wait is not None
    assert 28 < wait < 31


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "1, 20"}, 20.0),
        ({"Retry-After": '"20"'}, 20.0),
        ({"Retry-After": "PT1M20S"}, 80.0),
        ({"Retry-After": "soon, 20"}, 20.0),
        ({"x-ms-retry-after-ms": "1500", "Retry-After": "20"}, 1.5),
    ],
)
def test_a_wait_is_read_in_the_spelling_of_a_proxy_or_a_provider(headers, wait):
    assert asked_wait_s(headers, {}, "") == wait


@pytest.mark.parametrize(
    ("status", "said", "is_refused"),
    [
        (401, "", True),
        (403, "", True),
        (403, '{"message": "Forbidden"}', True),  # AWS API Gateway
        (403, "<html><head><title>403 Forbidden</title></head><body>nginx</body></html>", True),
        (403, '{"error_code": "403", "message": "Invalid Token"}', True),  # Databricks
        (403, '{"error": "invalid_token", "error_description": "The access token expired"}', True),  # RFC 6750
        (403, '{"message": "The security token included in the request is invalid."}', True),  # AWS
        (403, '{"error": {"message": "Token has been revoked"}}', True),
        (400, '{"error": {"message": "API key not valid. Please pass a valid API key."}}', True),  # Gemini
        (404, '{"message": "Session token expired"}', True),
        (500, '{"error": "token expired"}', True),
        (200, '{"error_code": 110, "error_msg": "Access token invalid or no longer valid"}', True),  # Baidu
        (200, '{"choices": [{"message": {"content": "error: token expired"}}]}', False),
        (403, '{"error": {"type": "permission_error", "message": "Your API key does not have permission"}}', False),
        (403, '{"message": "User: x is not authorized to perform: bedrock:InvokeModel"}', False),
        (403, '{"error": {"code": "model_not_found", "message": "Project p does not have access to model m"}}', False),
        (403, "This prompt is not allowed.", False),
        (403, '{"error": {"message": "Your input was flagged by moderation."}}', False),
        (403, '{"error": {"message": "Your credits have expired"}}', False),
        (404, '{"error": {"message": "File expired"}}', False),
    ],
)
def test_a_refusal_of_the_key_itself_differs_from_a_missing_permission(status, said, is_refused):
    assert refuses_key(status, {}, said.encode(), _ENDPOINT) is is_refused


def test_a_header_may_state_that_the_token_is_invalid():
    header = {"WWW-Authenticate": 'Bearer realm="x", error="invalid_token"'}
    assert refuses_key(403, header, b"{}", _ENDPOINT)
