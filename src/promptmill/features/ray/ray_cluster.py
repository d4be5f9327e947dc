"""Replicas as actors of a Ray cluster. Ray places the actors, restarts them, and reports lost actors."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from promptmill.backends import registry
from promptmill.backends.protocol import Backend
from promptmill.cluster.remote import LostError, Quota, RemoteBackend, Replica, environment_of, part_of
from promptmill.cluster.replicas import Replicas, create
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, PromptmillError, config_error
from promptmill.core.version import __version__
from promptmill.jobs.store.order_part import Create, OrderPart
from promptmill.system.installation import adding

_REACHED_S = 10


class RayCluster(OrderPart):
    """The address of a cluster, the number of replicas, and the resources of a node that each replica uses."""

    address: str
    replicas: int = 1
    gpus: float = 0
    cpus: float = 1

    @classmethod
    def of(cls, options: Mapping[str, Any], models: Sequence[str]) -> RayCluster:
        """Return the cluster that the options describe."""
        del models
        names = {"address": "ray", "replicas": "replicas", "gpus": "num_gpus", "cpus": "num_cpus"}
        return cls(**{field: options[name] for field, name in names.items() if options.get(name) is not None})

    @property
    def create(self) -> Create:
        """The function that makes the job's backend."""
        return self.connected

    async def connected(self, config: ModelConfig) -> Backend:
        """Return the model of `config` as replicas that are not yet loaded. Raises `PromptmillError`."""
        registry.check_name(config.backend)
        if importlib.util.find_spec("ray") is None:
            raise PromptmillError(Code.MISSING_DEPENDENCY, "Ray is not installed.", adding("ray"))
        count = self._count(config)
        one = create if config.replicas > 1 else registry.create
        arguments = (one, part_of(config), environment_of(config), __version__)
        quota = Quota(config.settings.backend_configs.openai.concurrency) if config.record.needs_endpoint else None

        key = registry.renewed_key(config)

        async def connect() -> Sequence[Backend]:
            actors = await asyncio.to_thread(self._actors, count)
            return [RemoteBackend(_ActorLink(actor), arguments, quota, key=key) for actor in actors]

        return Replicas(connect, _disconnect, hint="Look at the logs of the replicas, and at `ray status`.")

    def _actors(self, count: int) -> Sequence[Any]:
        """Connect and start the actors. Ray places an actor when the cluster has room. Blocks."""
        import ray

        self._check_address()
        # Usage reports are off for a cluster that promptmill starts.
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
        return [actor.remote() for _ in range(count)]

    def _count(self, config: ModelConfig) -> int:
        """Return the number of replicas; for an endpoint, at most `concurrency`, so that each can send a request."""
        if not config.record.needs_endpoint:
            return self.replicas
        return min(self.replicas, config.settings.backend_configs.openai.concurrency)

    def _check_address(self) -> None:
        """Raise `PromptmillError` if nothing listens at the address, because Ray would end this process."""
        host, _, port = self.address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdigit():
            return
        try:
            socket.create_connection((host.strip("[]"), int(port)), _REACHED_S).close()
        except OSError as error:
            raise _unreachable(self.address, error.strerror or type(error).__name__) from None


class _ActorLink:
    """The connection to one actor over the cluster's network, which also carries keys."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the actor when Ray has placed the actor. Raises `LostError`."""
        from ray.exceptions import RayError

        try:
            return await getattr(self._actor, method).remote(*arguments)
        except RayError:
            raise LostError from None

    def kill(self, *, again: bool) -> None:
        """Kill the actor's process; with `again`, Ray starts a new process."""
        import ray

        with contextlib.suppress(Exception):  # the cluster may be gone
            ray.kill(self._actor, no_restart=not again)


def _unreachable(address: str, why: str) -> PromptmillError:
    return config_error("", f"No Ray cluster answers at {address}: {why:.200}")


async def _disconnect() -> None:
    import ray

    await asyncio.to_thread(ray.shutdown)
