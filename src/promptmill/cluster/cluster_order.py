"""The cluster of a job, which a feature connects to."""

from __future__ import annotations

from dataclasses import dataclass

from promptmill.backends.protocol import Backend
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.feature import part_of


@dataclass(frozen=True, slots=True)
class ClusterOrder:
    """The address of a cluster, the number of replicas on it, and the resources that each takes of its node."""

    address: str
    replicas: int = 1
    gpus: float = 0
    cpus: float = 1

    async def create(self, plan: ResolvedConfig) -> Backend:
        """Return the model of `plan` as replicas, not loaded yet. Raises `PromptmillError`."""
        cluster = part_of("ray", "ray_cluster:RayCluster")(self.address, self.replicas, self.gpus, self.cpus)
        backend: Backend = await cluster.create(plan)
        return backend
