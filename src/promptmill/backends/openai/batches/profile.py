"""The differences between providers' Batch APIs, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Family: TypeAlias = Literal["openai", "together", "anthropic", "gemini", "mistral", "openrouter", "fireworks", "none"]
"""`none`: the provider publishes no reference of its Batch API, so batches are refused."""


@dataclass(frozen=True, slots=True)
class BatchProfile:
    """One provider's Batch API; the defaults are OpenAI's."""

    family: Family = "openai"
    requests: int = 50_000
    file_bytes: int = 200_000_000
    window_h: int = 24
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
    poll_s: float = 30.0
    """The shortest time between two requests for a state that the provider recommends."""
    takes_local_images: bool = True
    """Whether requests may contain images, and not only their URLs."""
    can_cancel: bool = True

    @property
    def is_open(self) -> bool:
        """Whether batches can be sent."""
        return self.family != "none"


PLAIN_BATCHES = BatchProfile()
"""The Batch API of every endpoint that is not listed: OpenAI's."""
