"""The differences between providers' Batch APIs, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from promptmill.backends.batches import BatchLimits

Family: TypeAlias = Literal["openai", "together", "anthropic", "gemini", "mistral", "openrouter", "fireworks", "none"]
"""`none`: the provider publishes no reference of its Batch API, so batches are refused."""


_OPENAIS = BatchLimits()


@dataclass(frozen=True, slots=True)
class BatchProfile:
    """One provider's Batch API; the defaults are OpenAI's."""

    family: Family = "openai"
    limits: BatchLimits = _OPENAIS
    label: Literal["metadata", "displayName", "id", ""] = "metadata"
    """The field that stores our key; empty: the provider stores no label."""
    discount: float | None = None
    """The documented part of the live price that a batch saves; None: not documented for all models."""
    page: str = ""
    """The page with these facts."""
    purpose: str = "batch"
    """The purpose of an uploaded file."""
    names_path: bool = True
    """Whether each line of a file names the path of its request."""
    checks_files: bool = False
    """Whether an uploaded file can be used only after the provider has processed it."""
    can_cancel: bool = True

    @property
    def is_open(self) -> bool:
        """Whether batches can be sent."""
        return self.family != "none"


PLAIN_BATCHES = BatchProfile()
"""The Batch API of every endpoint that is not listed: OpenAI's."""
