"""Classes, added by features, for programs written for another library: `from promptmill.api import OpenAIAPI`."""

from __future__ import annotations

from typing import Any

from promptmill.core.errors import PromptmillError
from promptmill.core.feature import names, part


def __getattr__(name: str) -> Any:
    """Import a class on first use."""
    if name == "__all__":
        return [PromptmillError.__name__, *names("api")]
    if name not in (known := names("api")):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return part(known[name])


def __dir__() -> list[str]:
    """Return the names of the classes, even before their first use."""
    return [PromptmillError.__name__, *names("api")]
