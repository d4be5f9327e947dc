"""Opens the Batch API of an endpoint: its profile, its address, its key."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

from promptmill.backends.openai.batches.connection import BatchConnection, Sleep
from promptmill.backends.openai.batches.openai import OpenAIBatches
from promptmill.backends.openai.batches.profile import PLAIN_BATCHES, BatchProfile
from promptmill.backends.openai.batches.wire import BatchApi, BatchLimits
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.transport import Pool
from promptmill.config.settings import OpenAISettings

# Files are kept below the provider's limits, which may count in other ways than we do.
_MARGIN = 0.9
_PATHS = re.compile(r"(/chat/completions|/responses|/messages|/models/[^/]+:\w+)/?$")
_DEPLOYMENT = re.compile(r"/deployments/[^/]+$")  # of Azure's addresses with an `api-version`


def batch_profile(endpoint: Endpoint) -> BatchProfile:
    """Return the row of the endpoint's provider; OpenAI's for every other endpoint."""
    return endpoint.profile.batch or PLAIN_BATCHES


@contextlib.asynccontextmanager
async def open_batches(
    endpoint: Endpoint, settings: OpenAISettings, *, sleep: Sleep = asyncio.sleep, rng: random.Random | None = None
) -> AsyncIterator[BatchApi]:
    """Open the Batch API of an endpoint. Nothing is sent yet."""
    pool = Pool(settings, 4)
    try:
        yield _family(pool, endpoint, settings, sleep, rng)
    finally:
        await pool.aclose()


def _family(
    pool: Pool, endpoint: Endpoint, settings: OpenAISettings, sleep: Sleep, rng: random.Random | None
) -> BatchApi:
    profile = batch_profile(endpoint)
    parts = urlsplit(endpoint.url)
    base = _DEPLOYMENT.sub("", _PATHS.sub("", parts.path))
    root = urlunsplit(parts._replace(path=base, query=""))
    limits = BatchLimits(
        requests=profile.requests,
        file_bytes=int(profile.file_bytes * _MARGIN),
        window_s=profile.window_h * 3600.0,
        poll_s=profile.poll_s,
        takes_local_images=profile.takes_local_images,
    )
    connection = BatchConnection(pool, endpoint, settings, root=root, headers=endpoint.headers, sleep=sleep, rng=rng)
    path = "/v1/responses" if parts.path.endswith("/responses") else "/v1/chat/completions"
    return OpenAIBatches(connection, profile, limits, path)
