"""Backends by name: made, tried and checked, each imported when it is needed."""

from __future__ import annotations

import asyncio
import difflib
import importlib
from collections.abc import Callable
from typing import cast

from promptmill.backends.protocol import Backend, Step
from promptmill.config.backends import BACKENDS, installed, is_named
from promptmill.config.loading import ResolvedConfig
from promptmill.core.errors import config_error


def check_name(name: str) -> None:
    """Raise `PromptmillError` (`invalid_config`) when there is no backend called `name`."""
    if not is_named(name):
        rows = [row[0] for row in providers()]
        if provider := difflib.get_close_matches(name.lower(), [row for row in rows if row not in BACKENDS], n=1):
            raise config_error(
                "backend",
                f"unknown backend; {provider[0]} is a provider: `--provider {provider[0]}`, or `backend: openai` and "
                f"`backend_configs: {{openai: {{provider: {provider[0]}}}}}`.",
            )
        known = [*BACKENDS, *installed(), "auto"]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        said = f"did you mean {near[0]}?" if near else f"known backends: {', '.join(known)}."
        raise config_error("backend", f"unknown backend; {said}")


async def create(plan: ResolvedConfig) -> Backend:
    """Return the backend that `plan` names, not yet loaded. Its module is imported off the event loop.

    Raises `PromptmillError` (`invalid_config`) for an unknown name or settings that cannot work.
    """
    check_name(plan.backend)
    module = await asyncio.to_thread(importlib.import_module, plan.record.module)
    return cast("Backend", module.create(plan))


async def diagnose(plan: ResolvedConfig, report: Callable[[Step], None]) -> bool:
    """Try the endpoints of `plan` stage by stage and `report` each; False when its backend has none to try.

    Raises `PromptmillError` (`invalid_config`) for settings that cannot work.
    """
    if not plan.record.diagnosis:
        return False
    module = await asyncio.to_thread(importlib.import_module, plan.record.diagnosis)
    await module.diagnose(plan, report)
    return True


def providers() -> list[tuple[str, str, str, bool]]:
    """Return `(name, base URL, variable of the key, whether it is set)` of every provider the openai backend knows."""
    module = importlib.import_module("promptmill.backends.openai.providers")
    return cast("list[tuple[str, str, str, bool]]", module.listed())


def addresses(plan: ResolvedConfig) -> list[str]:
    """Return the addresses that the plan's requests go to. Raises `KeyError` for a provider that nobody knows."""
    urls, provider = list(getattr(plan.block, "base_url", ())), getattr(plan.block, "provider", None)
    if urls or not provider:
        return urls
    url = importlib.import_module("promptmill.backends.openai.providers").preset(provider).base_url
    return [url] if url else []
