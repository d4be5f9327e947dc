"""promptmill: engines for text generation, as MCP tools."""

from __future__ import annotations

from typing import Any

from promptmill.core.version import __version__ as __version__

_NAMES = {
    "BulkResult": "promptmill.jobs.manage.bulk_result:BulkResult",
    "PromptmillError": "promptmill.core.errors:PromptmillError",
    "bulk": "promptmill.jobs.manage.bulk_call:bulk",
    "bulk_async": "promptmill.jobs.manage.bulk_call:bulk_async",
    "stream": "promptmill.jobs.manage.bulk_call:stream",
    "stream_async": "promptmill.jobs.manage.bulk_call:stream_async",
}


def _names() -> dict[str, str]:
    """Return, for each public name, the part of a module that it means; features add names."""
    from promptmill.core.feature import names

    return {**_NAMES, **names()}


def __getattr__(name: str) -> Any:
    """Import each public name on first use: the server starts often and does not need them."""
    if name == "__all__":
        return [*_names()]
    if name.startswith("__") or name not in (known := _names()):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from promptmill.core.feature import part

    return part(known[name])


def __dir__() -> list[str]:
    """Return the public names for programs, even before their first use."""
    return [*_names(), "__version__"]
