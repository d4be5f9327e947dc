"""Backend registry: names to module paths, so that nothing heavy is imported before it is needed."""

from __future__ import annotations

import asyncio
import difflib
import importlib
from collections.abc import Callable
from types import MappingProxyType
from typing import cast

from promptmill.backends.protocol import Backend, Step
from promptmill.config.loading import ResolvedConfig
from promptmill.core.errors import config_error

BACKENDS = MappingProxyType(
    {
        "openai": "promptmill.backends.openai.backend",
        "hf": "promptmill.backends.engines.host",
        "openvino": "promptmill.backends.engines.host",
        "vllm": "promptmill.backends.engines.host",
    }
)


def check_name(name: str) -> None:
    """Raise `PromptmillError` (`invalid_config`) when there is no backend called `name`."""
    if name not in BACKENDS:
        rows = [row[0] for row in providers()]
        if provider := difflib.get_close_matches(name.lower(), [row for row in rows if row not in BACKENDS], n=1):
            raise config_error(
                "backend",
                f"unknown backend; {provider[0]} is a provider: `--provider {provider[0]}`, or `backend: openai` and "
                f"`backend_configs: {{openai: {{provider: {provider[0]}}}}}`.",
            )
        near = difflib.get_close_matches(name, [*BACKENDS, "auto"], n=1, cutoff=0.5)
        known = f"did you mean {near[0]}?" if near else f"known backends: {', '.join(BACKENDS)}, auto."
        raise config_error("backend", f"unknown backend; {known}")


async def create(plan: ResolvedConfig) -> Backend:
    """Return the backend that `plan` names, not yet loaded. Its module is imported off the event loop.

    Raises `PromptmillError` (`invalid_config`) for an unknown name or settings that cannot work.
    """
    check_name(plan.backend)
    module = await asyncio.to_thread(importlib.import_module, BACKENDS[plan.backend])
    return cast("Backend", module.create(plan))


async def diagnose(plan: ResolvedConfig, report: Callable[[Step], None]) -> bool:
    """Try the endpoints of `plan` stage by stage and `report` each; False when its backend has none to try.

    Raises `PromptmillError` (`invalid_config`) for settings that cannot work.
    """
    if plan.backend != "openai":
        return False
    module = await asyncio.to_thread(importlib.import_module, "promptmill.backends.openai.diagnosis")
    await module.diagnose(plan, report)
    return True


def providers() -> list[tuple[str, str, str, bool]]:
    """Return `(name, base URL, variable of the key, whether it is set)` of every provider the openai backend knows."""
    module = importlib.import_module("promptmill.backends.openai.providers")
    return cast("list[tuple[str, str, str, bool]]", module.listed())
