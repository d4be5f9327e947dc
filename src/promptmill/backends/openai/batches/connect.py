"""Opens the Batch API of an endpoint: its profile, address and key."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from urllib.parse import urlsplit, urlunsplit

from promptmill.backends.batches import BatchApi, BatchLimits
from promptmill.backends.openai.batches.connection import BatchConnection, Sleep
from promptmill.backends.openai.batches.families import FAMILIES
from promptmill.backends.openai.batches.profile import PLAIN_BATCHES, BatchProfile
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.transport import Pool
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import Code, PromptmillError

# Files are kept below the provider's limits, because the provider may count bytes differently.
_MARGIN = 0.9
_PATHS = re.compile(r"(/chat/completions|/responses|/messages|/models(?:/[^/]+:\w+)?)/?$")
# The end of a base URL for an API other than OpenAI's, and that API's batches.
_OWN_API = re.compile(r"/(messages|models)(?:/[^/]+:\w+)?/?$")
_ROWS = {
    "messages": BatchProfile(family="anthropic", limits=BatchLimits(requests=100_000), label=""),
    "models": BatchProfile(family="gemini", label="displayName", checks_files=True, purpose=""),
}
_KEY_HEADERS = {"anthropic": "x-api-key", "gemini": "x-goog-api-key"}
_ANTHROPIC_VERSION = "2023-06-01"
_DEPLOYMENT = re.compile(r"/deployments/[^/]+$")  # in Azure's addresses with an `api-version`


def batch_profile(endpoint: Endpoint) -> BatchProfile:
    """Return the batch profile of the endpoint's provider; for an unknown one, by the API in the address."""
    if endpoint.profile.batch is not None:
        return endpoint.profile.batch
    match = _OWN_API.search(urlsplit(endpoint.url).path)
    return _ROWS[match[1]] if match else PLAIN_BATCHES


@contextlib.asynccontextmanager
async def open_batches(
    endpoint: Endpoint, settings: OpenAISettings, *, sleep: Sleep = asyncio.sleep, rng: random.Random | None = None
) -> AsyncIterator[BatchApi]:
    """Open the Batch API of an endpoint. Sends nothing.

    Raises `unsupported` if the provider's batches have another API than the endpoint.
    """
    pool = Pool(settings, 4)
    try:
        yield _family(pool, endpoint, settings, sleep, rng)
    finally:
        await pool.aclose()


def _family(
    pool: Pool, endpoint: Endpoint, settings: OpenAISettings, sleep: Sleep, rng: random.Random | None
) -> BatchApi:
    profile = batch_profile(endpoint)
    if not profile.is_open:
        text = f"{endpoint.name} publishes no reference of its Batch API, so no batches are sent there."
        raise PromptmillError(Code.UNSUPPORTED, text, "Leave out `batch`, or use another endpoint.")
    parts = urlsplit(endpoint.url)
    match = _OWN_API.search(parts.path)
    spoken = _ROWS[match[1]].family if match else ""
    if spoken != (profile.family if profile.family in _KEY_HEADERS else ""):
        dialect = profile.family if profile.family in _KEY_HEADERS else "openai"
        raise PromptmillError(
            Code.UNSUPPORTED,
            f"{endpoint.name} runs batches of requests in its own API only.",
            f"Set `dialect: {dialect}`, or leave `dialect` out.",
        )
    base = _DEPLOYMENT.sub("", _PATHS.sub("", parts.path))
    if profile.family == "gemini":
        base = base.removesuffix("/openai")
    elif profile.family == "fireworks":  # this API is next to the inference API
        base = base.replace("/inference/v1", "/v1")
    limits = replace(profile.limits, file_bytes=int(profile.limits.file_bytes * _MARGIN))
    connection = BatchConnection(
        pool,
        endpoint,
        settings,
        root=urlunsplit(parts._replace(path=base, query="")),
        headers=_headers(endpoint, profile),
        sleep=sleep,
        rng=rng,
    )
    path = "/v1/responses" if parts.path.endswith("/responses") else "/v1/chat/completions"
    return FAMILIES[profile.family](connection, profile, limits, path)


def _headers(endpoint: Endpoint, profile: BatchProfile) -> dict[str, str]:
    """Return the endpoint's headers, with the key in the family's header."""
    headers = dict(endpoint.headers)
    names = {name.lower(): name for name in headers}
    if profile.family == "anthropic" and "anthropic-version" not in names:
        headers["anthropic-version"] = _ANTHROPIC_VERSION
    wanted = _KEY_HEADERS.get(profile.family)
    if wanted and wanted not in names and "authorization" in names:
        headers[wanted] = headers.pop(names["authorization"]).removeprefix("Bearer ")
    return headers
