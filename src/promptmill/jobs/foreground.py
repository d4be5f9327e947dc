"""One job run in this process until its end, SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import replace
from typing import Any

from promptmill.config.models import ResolvedConfig
from promptmill.core.errors import PromptmillError
from promptmill.jobs.job_request import JobRequest
from promptmill.jobs.runner import Runner
from promptmill.service import registry
from promptmill.service.loaded_backend import Create

_LEAVING_S = 60.0


async def until_ended(runner: Runner) -> tuple[dict[str, Any], PromptmillError | None, bool]:
    """Run a job until its end, SIGTERM or Ctrl-C. Returns its status, why it stopped early, and whether SIGTERM came.

    The first Ctrl-C lets what is in flight come to its end, for a minute: it will be paid for. Raises
    `KeyboardInterrupt` after Ctrl-C.
    """
    loop = asyncio.get_running_loop()
    work = asyncio.ensure_future(runner.run())
    signals: list[int] = []

    def on_signal(number: int) -> None:
        signals.append(number)
        if signals == [signal.SIGINT] and runner.leave():
            loop.call_later(_LEAVING_S, work.cancel)
        else:
            work.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, on_signal, number)
    try:
        found = await work
    except asyncio.CancelledError:
        if not signals:
            raise
        found = runner.found()
    if signal.SIGINT in signals:
        raise KeyboardInterrupt
    return found, runner.error, bool(signals)


def creating(order: JobRequest) -> Create:
    """Return what makes the backends that answer the job: here, or on the Ray cluster that it names."""
    if order.ray is None:
        return registry.create
    from promptmill.service.ray_cluster import RayCluster

    return RayCluster(**order.ray.model_dump()).create


def without_own_dedupe(plan: ResolvedConfig) -> ResolvedConfig:
    """Return `plan` without the backend's `dedupe`, which remembers every answer: a job has its own, on disk."""
    if not getattr(plan.block, "dedupe", False):
        return plan
    assert plan.block is not None
    block = plan.block.model_copy(update={"dedupe": False})
    configs = plan.settings.backend_configs.model_copy(update={plan.backend: block})
    settings = plan.settings.model_copy(update={"backend_configs": configs})
    return replace(plan, settings=settings)
