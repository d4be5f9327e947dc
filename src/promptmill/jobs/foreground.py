"""One job run in this process until its end or SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import replace
from typing import Any

from promptmill.config.loading import ResolvedConfig
from promptmill.core.errors import PromptmillError
from promptmill.jobs.job_request import JobRequest
from promptmill.jobs.runner import Runner
from promptmill.service import registry
from promptmill.service.loaded_backend import Create


async def until_terminated(runner: Runner) -> tuple[dict[str, Any], PromptmillError | None, bool]:
    """Run a job until its end or SIGTERM. Returns its status, why it stopped early, and whether SIGTERM came."""
    work = asyncio.ensure_future(runner.run())
    terminated = False

    def on_signal() -> None:
        nonlocal terminated
        terminated = True
        work.cancel()

    with contextlib.suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, on_signal)
    try:
        return await work, runner.error, False
    except asyncio.CancelledError:
        if not terminated:
            raise
        return runner.found(), None, True


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
