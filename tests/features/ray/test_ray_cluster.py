"""What each replica of a Ray cluster is given; test_ray_jobs.py has the cluster."""

from __future__ import annotations

import asyncio
import pickle
from types import SimpleNamespace

import pytest

from fakes import openai_configuration
from promptmill.backends import registry
from promptmill.cluster import replicas
from promptmill.cluster.remote import part_of
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.features.ray.ray_cluster import RayCluster


def test_a_replica_starts_no_processes_of_its_own_and_no_more_of_them_than_requests_are_there():
    config = openai_configuration("http://127.0.0.1:9/v1", rpm=60, tpm=1000, concurrency=10, num_workers=4).config
    share = part_of(config).settings.backend_configs.openai
    assert (share.rpm, share.tpm, share.concurrency, share.num_workers) == (60, 1000, 10, 1)  # `Quota` leases them
    assert RayCluster(address="auto", replicas=20)._count(config) == 10


def test_a_plan_can_be_sent_to_a_replica():
    config = openai_configuration("http://127.0.0.1:9/v1").config
    assert pickle.loads(pickle.dumps(config)) == config


async def test_an_actor_loads_one_backend_unless_it_has_replicas_of_its_own(monkeypatch):
    """Rates are leased to the backend itself, which `Replicas` has no part of."""
    pytest.importorskip("ray")
    given: list[object] = []

    class Method:
        async def remote(self, *arguments: object) -> PromptmillError:
            given.append(arguments[0])
            return PromptmillError(Code.ENGINE_LOAD_FAILED, "enough")

    monkeypatch.setattr(RayCluster, "_actors", lambda *_: [SimpleNamespace(load=Method())])
    hf = {"model_name_or_path": "m", "device": "cpu"}
    for count in (1, 2):
        config = Configuration({"backend": "hf", "backend_configs": {"hf": {**hf, "replicas": count}}}).config
        backend = await RayCluster(address="auto").create(config)
        with pytest.raises(PromptmillError, match="enough"):
            await backend.load(lambda _: None)
    assert given == [registry.create, replicas.create]


def test_a_cluster_that_is_not_there_is_told_without_ray_ending_the_process():
    pytest.importorskip("ray")

    async def load() -> None:
        backend = await RayCluster(address="127.0.0.1:9").create(openai_configuration("http://127.0.0.1:9/v1").config)
        await backend.load(lambda _: None)

    with pytest.raises(PromptmillError, match="No Ray cluster answers at 127"):
        asyncio.run(load())
