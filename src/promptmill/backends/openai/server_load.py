"""How many requests wait inside a server of one's own, where it publishes that.

vLLM always does (docs.vllm.ai, "Production Metrics"), SGLang and llama.cpp when started with a switch, as Prometheus
text at `/metrics` beside the API.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit

from promptmill.backends.openai.endpoint_state import EndpointState

_PERIOD_S = 1.0
_LARGEST_PAGE = 4 * 1024 * 1024
# A sample of the text format: name, perhaps labels, value. One line per engine or model, to be added up.
_WAITING = re.compile(
    rb"^(?:vllm:num_requests_waiting|sglang:num_queue_reqs|llamacpp:requests_deferred|tgi_queue_size)"
    rb"(?:\{[^\n}]*\})? +([0-9.eE+]+)(?: .*)?$",
    re.MULTILINE,
)


class Pages(Protocol):
    """What fetches a page."""

    async def get(self, url: str, largest: int, timeout_s: float) -> bytes | None:
        """Return the body of a page; None for whatever goes wrong."""
        ...


def waiting_in(page: bytes) -> float | None:
    """Return how many requests wait according to a page of metrics; None where it does not say."""
    found = _WAITING.findall(page)
    try:
        return sum(map(float, found)) if found else None
    except ValueError:
        return None


async def watch_servers(pages: Pages, endpoint_states: Sequence[EndpointState]) -> None:
    """Tell each endpoint's search once a second what waits there, until no server says so any more."""
    watched = {state: _metrics_url(state.endpoint.url) for state in endpoint_states if state.search is not None}
    while watched:
        await asyncio.sleep(_PERIOD_S)
        for state, url in tuple(watched.items()):
            page = await pages.get(url, _LARGEST_PAGE, _PERIOD_S)
            waiting = None if page is None else waiting_in(page)
            if waiting is None:
                del watched[state]
            elif state.search is not None:
                state.search.waits(waiting, state.in_flight)


def _metrics_url(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/metrics"
