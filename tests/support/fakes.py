"""The ends of a run: a source of a list, a sink into a dict, and a plan that points at an upstream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from promptmill.backends.protocol import Call, FixedShare, Outcome, Source
from promptmill.config.configuration import Configuration
from promptmill.config.model_config import ModelConfig
from promptmill.core.request import Conversation, Message, Request, Sampling

KEY = "test-key-0123456789abcdef"


class RequestSource(Source):
    """Hands out `requests`; `taken` counts those handed out."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.taken = 0

    async def take(self, n: int) -> list[Request]:
        start = self.taken
        self.taken = min(start + n, len(self.requests))
        return list(self.requests[start : self.taken])


class ListSource(RequestSource):
    """Requests for `prompts`, keyed by index."""

    def __init__(
        self,
        prompts: Sequence[str | Conversation],
        sampling: Sampling | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        turns = [
            prompt if isinstance(prompt, Conversation) else Conversation((Message("user", prompt),))
            for prompt in prompts
        ]
        super().__init__([Request(key, one, sampling or Sampling(), extra or {}) for key, one in enumerate(turns)])


class FakeBackend:
    """A backend that takes `most` requests of a call at a time; a test's own has `answer`."""

    most = 2

    async def load(self, report: Callable[[str], None]) -> None:
        report("loading")

    def enter(self, call: Call) -> FixedShare:
        return FixedShare(self.most)

    async def leave(self, call: Call) -> None:
        pass

    async def aclose(self) -> None:
        pass


class DictSink:
    """Outcomes by key; a second outcome for a key is a mistake of the backend. `delay_s` is back-pressure."""

    def __init__(self, delay_s: float = 0) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self._delay_s = delay_s

    def put(self, key: int, outcome: Outcome) -> Awaitable[None] | None:
        assert key not in self.outcomes, f"key {key} got a second outcome: {outcome}"
        self.outcomes[key] = outcome
        return asyncio.sleep(self._delay_s) if self._delay_s else None


def openai_configuration(base_url: str | list[str], **block: Any) -> Configuration:
    """Return the operator's configuration of the openai backend at `base_url`, with delays made for tests."""
    quick = {
        "model_name": "test-model",
        "api_key": KEY,
        "base_delay": 0.01,
        "max_delay": 0.05,
        "retries": 3,
        "timeout": [30, 60],
        "patience": 20,
    }
    return Configuration({"backend": "openai", "backend_configs": {"openai": {"base_url": base_url, **quick, **block}}})


def openai_config(base_url: str | list[str], **block: Any) -> ModelConfig:
    """Return the plan of `openai_configuration`."""
    return openai_configuration(base_url, **block).config


def without_rest(_seconds: float, do: Callable[[], None]) -> None:
    """Do at once what a preview does after its rest, so that it shows each piece."""
    do()
