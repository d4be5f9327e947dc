"""Opens the Batch API of an endpoint: chooses its profile and its address."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator
from dataclasses import replace

from promptmill.backends.batches import BatchApi, BatchLimits
from promptmill.backends.openai.batches.connection import BatchConnection, Sleep
from promptmill.backends.openai.batches.families import FAMILIES
from promptmill.backends.openai.batches.profile import CHATS_ONLY, PLAIN_BATCHES, BatchProfile
from promptmill.backends.openai.dialects import DIALECTS
from promptmill.backends.openai.dialects.deciding import Deciding
from promptmill.backends.openai.endpoint import COMPLETIONS, Endpoint
from promptmill.backends.openai.transport import Pool
from promptmill.config.settings import OpenAISettings
from promptmill.core.errors import Code, PromptmillError

# Files use at most this share of a provider's size limit, because the provider may count bytes differently.
_MARGIN = 0.9
# The Batch APIs of gateways that speak these dialects.
_OF_DIALECTS = {
    "anthropic": BatchProfile(
        family="anthropic", limits=BatchLimits(requests=100_000), label="", other_paths=CHATS_ONLY
    ),
    "gemini": BatchProfile(family="gemini", label="displayName", checks_files=True, purpose="", other_paths=CHATS_ONLY),
}
_DEPLOYMENT = re.compile(r"/deployments/[^/]+$")  # Azure's addresses with an `api-version` end in this


def batch_profile(endpoint: Endpoint) -> BatchProfile:
    """Return the batch profile of the endpoint's provider; for an unknown provider, that of the endpoint's dialect."""
    return endpoint.profile.batch or _OF_DIALECTS.get(endpoint.dialect, PLAIN_BATCHES)


@contextlib.asynccontextmanager
async def open_batches(
    endpoint: Endpoint,
    settings: OpenAISettings,
    path: str = "",
    *,
    sleep: Sleep = asyncio.sleep,
    rng: random.Random | None = None,
) -> AsyncIterator[BatchApi]:
    """Open the Batch API of an endpoint, for requests with this `Request.path`. No request is sent.

    Raises `unsupported` if the endpoint's dialect is not that of the batches, or if batches take no requests to `path`.
    """
    profile, path = batch_profile(endpoint), path or ("/responses" if endpoint.dialect == "responses" else "")
    _check(profile, endpoint, path)
    root = _DEPLOYMENT.sub("", endpoint.base_url)
    if profile.family == "fireworks":  # the URL of Fireworks' batches has no `/inference`
        root = root.replace("/inference/v1", "/v1")
    limits = replace(profile.limits, file_bytes=int(profile.limits.file_bytes * _MARGIN))
    pool = Pool(settings, 4)
    connection = BatchConnection(pool, endpoint, settings, root=root, sleep=sleep, rng=rng)
    try:
        yield FAMILIES[profile.family](connection, profile, limits, f"/v1{path or COMPLETIONS}")
    finally:
        await pool.aclose()


def _check(profile: BatchProfile, endpoint: Endpoint, path: str) -> None:
    if isinstance(DIALECTS[endpoint.dialect], Deciding):
        text = f"{endpoint.name} decides, and no provider runs decisions in batches."
        raise PromptmillError(Code.UNSUPPORTED, text, "Leave out `batch`: live requests cost what a batch would.")
    if not profile.is_open:
        text = f"{endpoint.name} runs no batches of requests in this API."
        raise PromptmillError(Code.UNSUPPORTED, text, "Leave out `batch`, or use another endpoint.")
    if path and path not in profile.other_paths:
        text = f"{endpoint.name} takes no requests to {path} in a batch."
        raise PromptmillError(Code.UNSUPPORTED, text, "Leave out `batch`, or use another endpoint.")
    spoken, wanted = (name if name in _OF_DIALECTS else "openai" for name in (endpoint.dialect, profile.family))
    if spoken != wanted:
        raise PromptmillError(
            Code.UNSUPPORTED,
            f"{endpoint.name} runs batches of requests in its own API only.",
            f"Set `dialect: {wanted}`, or leave `dialect` out.",
        )
