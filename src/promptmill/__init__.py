"""promptmill: text-generation engines as MCP tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptmill.comparison.call import Comparison, compare
    from promptmill.core.errors import PromptmillError
    from promptmill.improvement.improvement import Improvement, improve
    from promptmill.jobs.manage.bulk_call import bulk, bulk_async, stream, stream_async
    from promptmill.jobs.manage.bulk_result import BulkResult

__version__ = "0.1.0"
__all__ = [
    "BulkResult",
    "Comparison",
    "Improvement",
    "PromptmillError",
    "bulk",
    "bulk_async",
    "compare",
    "improve",
    "stream",
    "stream_async",
]


def __getattr__(name: str) -> Any:
    """Import each name of the programs' interface at its first use: the server starts often and does not use them."""
    if name in {"Comparison", "compare"}:
        from promptmill.comparison import call

        return getattr(call, name)
    if name == "PromptmillError":
        from promptmill.core import errors

        return errors.PromptmillError
    if name in {"Improvement", "improve"}:
        from promptmill.improvement import improvement as improve_call

        return getattr(improve_call, name)
    if name in __all__:
        from promptmill.jobs.manage import bulk_call

        return getattr(bulk_call, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of the programs' interface, also before their first use."""
    return [*__all__, "__version__"]
