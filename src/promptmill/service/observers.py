"""Observers of a service, by which features export telemetry to other programs."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol, cast

from promptmill.core.feature import features
from promptmill.service.service import Service


class Observer(Protocol):
    """An observer of one service. It sets the service's `observe`, and belongs to the running event loop."""

    def tool_call(self, tool: str | None, carrier: Mapping[str, str]) -> AbstractContextManager[Callable[[str], None]]:
        """Observe a tool call that runs in the `with` block. Yields a function that records the code of a failure."""
        ...

    async def aclose(self, limit_s: float) -> None:
        """Export what has not been exported yet, for at most `limit_s` seconds."""
        ...


class _Module(Protocol):
    """The module of an observing feature, see `core.feature.Observation`."""

    def exporting(self, service: Service, environ: Mapping[str, str]) -> Observer | None: ...

    def exported(self, service: Service, environ: Mapping[str, str]) -> AbstractAsyncContextManager[None]: ...

    def inherited(self, environ: Mapping[str, str]) -> dict[str, str]: ...


def _module(environ: Mapping[str, str]) -> _Module | None:
    for feature in features().values():
        observation = feature.observation
        if observation is not None and any(name.upper().startswith(observation.variables) for name in environ):
            return cast("_Module", importlib.import_module(observation.module))
    return None


def exporting(service: Service, environ: Mapping[str, str] = os.environ) -> Observer | None:
    """Start to observe `service`; return None if the environment requests no observer."""
    module = _module(environ)
    return None if module is None else module.exporting(service, environ)


@contextlib.asynccontextmanager
async def exported(service: Service, environ: Mapping[str, str] = os.environ) -> AsyncIterator[None]:
    """Observe `service` during the `with` block, and export what is left at the block's end."""
    module = _module(environ)
    async with contextlib.nullcontext() if module is None else module.exported(service, environ):
        yield


def inherited(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment variables with which a child process is observed as this process is."""
    module = _module(environ)
    return {} if module is None else module.inherited(environ)
