"""Replicas as actors of a Ray cluster: Ray places them, restarts them, and tells when one is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from promptmill import __version__
from promptmill.backends import registry
from promptmill.backends.protocol import Backend, Request
from promptmill.cluster.rate_leases import LostError
from promptmill.cluster.replica import Replica, Report
from promptmill.cluster.replicas import Link, Replicas
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, config_error
from promptmill.system.installation import adding

_REACHED_S = 10


@dataclass(frozen=True, slots=True)
class RayCluster:
    """Where replicas run, how many, and what each of them takes of its node."""

    address: str
    replicas: int = 1
    gpus: float = 0
    cpus: float = 1

    async def create(self, plan: ResolvedConfig) -> Backend:
        """Return the model of `plan` as replicas, not loaded yet. Raises `PromptmillError`."""
        registry.check_name(plan.backend)
        try:
            import ray  # noqa: F401 (whether it is there)
        except ImportError:
            raise PromptmillError(Code.MISSING_DEPENDENCY, "--ray needs Ray.", adding("ray")) from None
        count = self._count(plan)
        shares = _share(plan, count)
        environment = {name: os.environ[name] for name in _keys(plan) if name in os.environ}

        async def connect() -> Sequence[Link]:
            return await asyncio.to_thread(self._actors, count, shares, environment)

        return Replicas(connect, _disconnect, share_rates=_has_rates(plan))

    def _actors(self, count: int, plan: ResolvedConfig, environment: dict[str, str]) -> Sequence[Link]:
        """Connect and ask for the actors, which Ray places when there is room. Blocks."""
        import ray

        self._check_address()
        # no reports to anybody, whatever cluster is started here
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(
                address=self.address,
                ignore_reinit_error=True,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                include_dashboard=False if self.address == "local" else None,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _unreachable(self.address, (str(error).splitlines() or [type(error).__name__])[0]) from None
        actor: Any = ray.remote(Replica).options(
            num_gpus=self.gpus,
            num_cpus=self.cpus,
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        return [_ActorLink(actor.remote(), plan, environment) for _ in range(count)]

    def _count(self, plan: ResolvedConfig) -> int:
        """Return how many replicas there can be: each of an endpoint's has at least one request in flight."""
        if plan.backend != "openai":
            return self.replicas
        return min(self.replicas, plan.settings.backend_configs.openai.concurrency)

    def _check_address(self) -> None:
        """Raise `PromptmillError` when nobody is there: Ray itself would end this process."""
        host, _, port = self.address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdigit():
            return
        try:
            socket.create_connection((host.strip("[]"), int(port)), _REACHED_S).close()
        except OSError as error:
            raise _unreachable(self.address, error.strerror or type(error).__name__) from None


class _ActorLink:
    """The way to one actor. What it is given goes over the cluster's own network, keys included."""

    def __init__(self, actor: Any, plan: ResolvedConfig, environment: dict[str, str]) -> None:
        self._actor = actor
        self._given: tuple[Callable[[ResolvedConfig], Awaitable[Backend]], ResolvedConfig, dict[str, str], str]
        self._given = registry.create, plan, environment, __version__

    async def load(self) -> PromptmillError | None:
        """Have the model loaded, once Ray has placed the actor."""
        found: PromptmillError | None = await self._answer(self._actor.load.remote(*self._given))
        return found

    async def submit(self, requests: Sequence[Request], *, is_last: bool) -> None:
        """Hand `requests` over."""
        await self._answer(self._actor.submit.remote(requests, is_last=is_last))

    async def report(self) -> Report:
        """Wait for what there is to tell."""
        found: Report = await self._answer(self._actor.report.remote())
        return found

    async def lease(self, share: float) -> None:
        """Let the replica use this part of `rpm` and `tpm`."""
        await self._answer(self._actor.lease.remote(share))

    def kill(self, *, again: bool) -> None:
        """End the actor's process at once."""
        import ray

        with contextlib.suppress(Exception):  # the cluster is gone
            ray.kill(self._actor, no_restart=not again)

    @staticmethod
    async def _answer(reference: Any) -> Any:
        from ray.exceptions import RayError

        try:
            return await reference
        except RayError:
            raise LostError from None


def _unreachable(address: str, why: str) -> PromptmillError:
    return config_error("--ray", f"no Ray cluster answers at {address}: {why:.200}")


def _disconnect() -> None:
    import ray

    ray.shutdown()


def _share(plan: ResolvedConfig, count: int) -> ResolvedConfig:
    """Return the plan of one of `count` replicas: a share of what may be in flight, so that together they keep to it.

    `rpm` and `tpm` are leased to those that are there, see `Replicas`.
    """
    if plan.backend != "openai":
        return plan
    configs = plan.settings.backend_configs
    openai = configs.openai
    limits: dict[str, Any] = {"concurrency": openai.concurrency // count, "num_workers": 1, "dedupe": False}
    configs = configs.model_copy(update={"openai": openai.model_copy(update=limits)})
    return replace(plan, settings=plan.settings.model_copy(update={"backend_configs": configs}))


def _has_rates(plan: ResolvedConfig) -> bool:
    openai = plan.settings.backend_configs.openai
    return plan.backend == "openai" and (openai.rpm is not None or openai.tpm is not None)


def _keys(plan: ResolvedConfig) -> Sequence[str]:
    """Return the variables that a replica needs of our environment."""
    if plan.backend != "openai":
        return ()
    return (*registry.key_variables(plan), "PROMPTMILL_ENDPOINTS")
