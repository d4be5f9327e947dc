"""The differences between providers' Batch APIs, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from promptmill.backends.batches import BatchLimits
from promptmill.core.request import EMBEDDINGS

Family: TypeAlias = Literal[
    "openai", "together", "anthropic", "gemini", "mistral", "openrouter", "fireworks", "xai", "none"
]
"""`none`: the provider runs no batches in the endpoint's API (Bedrock's batches need AWS signatures and S3)."""

CHATS_ONLY: frozenset[str] = frozenset()
OPENAIS_PATHS = frozenset({EMBEDDINGS, "/responses"})  # openai 3.57.0, types/batch_create_params.py
_OPENAIS = BatchLimits()


@dataclass(frozen=True, slots=True)
class BatchProfile:
    """The Batch API of one provider. The defaults are OpenAI's."""

    family: Family = "openai"
    limits: BatchLimits = _OPENAIS
    label: Literal["metadata", "displayName", "id", "name", ""] = "metadata"
    """The field of a batch that holds promptmill's key as a label; empty if the provider stores no label."""
    discount: float | None = None
    """The documented discount, as a share of the live price; None if it is not documented for all models."""
    page: str = ""
    """The provider's page that documents these facts."""
    purpose: str = "batch"
    """The purpose of an uploaded file."""
    names_path: bool = True
    """Whether each line of a file names the path of its request."""
    checks_files: bool = False
    """Whether an uploaded file is usable only after the provider has processed it."""
    can_cancel: bool = True
    other_paths: frozenset[str] = frozenset({EMBEDDINGS})
    """The paths of requests that batches take in addition to chats."""

    @property
    def is_open(self) -> bool:
        """Whether promptmill can send batches."""
        return self.family != "none"


PLAIN_BATCHES = BatchProfile(other_paths=OPENAIS_PATHS)
"""The Batch API that is assumed for unlisted providers: OpenAI's."""
