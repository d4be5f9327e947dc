"""The ways in which providers cache the beginnings of prompts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

CacheWay: TypeAlias = Literal["automatic", "key", "marks", "breakpoints"]
"""The way in which a provider caches beginnings:

automatic    every beginning
key          every beginning, for requests with the same `prompt_cache_key`
marks        up to a `cache_control` in the provider's dialect; cached tokens cost more when they are first written
breakpoints  up to a `prompt_cache_breakpoint`, for requests with the same key; first writing costs more, too
"""
BYTES_PER_TOKEN = 4
"""Bytes per token of English text; less accurate for other scripts."""
# The limit of OpenAI, Azure, Gemini and most models of Anthropic. Shorter beginnings are not cached, and cost nothing.
_LEAST_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class ModelCache:
    """The way in which a provider caches the beginnings of prompts for one model."""

    way: CacheWay
    least: int
    """The size in bytes of the shortest beginning that the provider caches."""


@dataclass(frozen=True, slots=True)
class PromptCache:
    """The way in which a provider caches the beginnings of prompts."""

    way: CacheWay | None = None
    """The way of the cache; None if it is unknown."""
    breakpoints: re.Pattern[str] | None = None
    """Matches the models whose way is `breakpoints`."""
    marks: frozenset[str] = frozenset()
    """The `CACHE_MARKS` that parts of a chat completion may have with any model."""
    least: tuple[tuple[re.Pattern[str], int], ...] = ()
    """The size in tokens of the shortest cached beginning, by the model's name; 1,024 for other models."""

    def has_breakpoints(self, model: str) -> bool:
        """Return whether the provider caches prompts of `model` up to marked breakpoints."""
        return self.breakpoints is not None and self.breakpoints.search(model) is not None

    def of(self, model: str) -> ModelCache | None:
        """Return how the provider caches beginnings of prompts for `model`; None if that is unknown."""
        way: CacheWay | None = "breakpoints" if self.has_breakpoints(model) else self.way
        tokens = next((tokens for models, tokens in self.least if models.search(model)), _LEAST_TOKENS)
        return ModelCache(way, tokens * BYTES_PER_TOKEN) if way else None

    def takes(self, model: str) -> frozenset[str]:
        """Return the `CACHE_MARKS` that parts of a chat completion may have."""
        return self.marks | {"prompt_cache_breakpoint"} if self.has_breakpoints(model) else self.marks


UNKNOWN = PromptCache()
"""The cache of providers about which nothing is known."""
