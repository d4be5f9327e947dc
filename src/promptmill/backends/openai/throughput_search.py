"""How many requests in flight keep a server of one's own busy, found from the answers per second.

A server that batches continuously seldom refuses. Up to a point more in flight is more answers per second; beyond it
each answer only takes longer. The limit is doubled while that pays, then set to where the gain ended, and from there
a little more is tried now and then. Where the server publishes how many requests wait inside it, that is heeded, too:
vLLM always does (docs.vllm.ai, "Production Metrics"), SGLang and llama.cpp when started with a switch, as Prometheus
text at `/metrics` beside the API.
"""

from __future__ import annotations

import re
from typing import Protocol
from urllib.parse import urlsplit

from promptmill.backends.openai.adaptive_limit import AdaptiveLimit

# Doubling the limit must bring this share of what a server with time to spare would bring …
_PAYS = 0.7
# … and a small step this share of its size.
_PAYS_STILL = 0.4
_STEP = 0.1
_FEWEST_ANSWERS = 32
_LONGEST_REST = 32
_BUSY = 0.8
_PAGE_S = 1.0
_LARGEST_PAGE = 4 * 1024 * 1024
# A sample of the text format: name, perhaps labels, value. One line per engine or model, to be added up.
_WAITING = re.compile(
    rb"^(?:vllm:num_requests_waiting|sglang:num_queue_reqs|llamacpp:requests_deferred|tgi_queue_size)"
    rb"(?:\{[^\n}]*\})? +([0-9.eE+]+)(?: .*)?$",
    re.MULTILINE,
)


class ThroughputSearch:
    """Sets the bound of `limit`, from its size when this begins up to `most`.

    What is answered per second is by Little's law what is in flight, divided by how long an answer takes. Where the
    server says how many tokens an answer has, the time is that of a token, whatever the lengths of the answers.
    """

    def __init__(self, limit: AdaptiveLimit, most: int) -> None:
        self._limit = limit
        self._most = most
        self._doubling = True
        self._base: tuple[float, float] | None = None  # the best level so far: (in flight, answered per second)
        self._step = _STEP
        self._rest = 0  # levels' worth of answers before the next try
        self._rests = 2
        self._begin(limit.size)

    def answered(self, round_number: int, in_flight: int, answer_s: float, tokens: int) -> None:
        """Count an answer, perhaps of so many tokens, that came while `in_flight` requests were out, itself included.

        `round_number` is from `AdaptiveLimit.taken`.
        """
        if round_number < self._since:
            return
        self._answers += 1
        self._in_flight += in_flight
        self._seconds += answer_s
        self._tokens += tokens or 1
        if self._answers >= max(_FEWEST_ANSWERS, self._limit.most):
            self._decide()

    def waits(self, waiting: float, in_flight: int) -> None:
        """Note that of `in_flight` requests, and those of others, so many wait for their turn, as the server says."""
        if waiting > 0.05 * in_flight:
            self._doubling = False
            self._base = None
            self._step = _STEP
            self._begin(min(self._limit.most, max(in_flight / 2, in_flight - waiting)))

    def _begin(self, most: float) -> None:
        """Go to a level and see what it brings."""
        self._limit.most = max(1, min(self._most, round(most)))
        self._since = self._limit.round_number
        self._answers = self._in_flight = self._tokens = 0
        self._seconds = 0.0

    def _decide(self) -> None:
        level = self._in_flight / self._answers
        if level < _BUSY * self._limit.most or self._seconds <= 0:  # too little to do: this says nothing
            return self._begin(self._limit.most)
        rate = level * self._tokens / self._seconds
        if self._base is None or self._rest:
            self._rest = max(0, self._rest - 1)
            self._base = level, rate
            return self._begin(self._limit.most if self._rest else self._wider(level))
        base_level, base_rate = self._base
        if level <= base_level:
            self._base = level, rate
            return self._begin(self._wider(level))
        gain = (rate / base_rate - 1) / (level / base_level - 1)
        if gain >= (_PAYS if self._doubling else _PAYS_STILL):
            self._base = level, rate
            self._step = min(1.0, 2 * self._step)
            self._rests = 2
            return self._begin(self._wider(level))
        if self._doubling:  # what the base's speed would need for this rate
            self._doubling = False
            self._base = None
            return self._begin(max(base_level, min(level, base_level * rate / base_rate)))
        self._step = _STEP
        self._rest = self._rests
        self._rests = min(_LONGEST_REST, 2 * self._rests)
        return self._begin(base_level)

    def _wider(self, level: float) -> float:
        return 2 * level if self._doubling else max(level + 1, level * (1 + self._step))


class Pages(Protocol):
    """Fetches web pages."""

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


async def waiting_at(pages: Pages, url: str) -> float | None:
    """Return how many requests wait inside the server that `url` is of; None where it does not say."""
    parts = urlsplit(url)
    page = await pages.get(f"{parts.scheme}://{parts.netloc}/metrics", _LARGEST_PAGE, _PAGE_S)
    return None if page is None else waiting_in(page)
