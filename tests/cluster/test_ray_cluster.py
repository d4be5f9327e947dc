"""What each replica of a Ray cluster is given; tests/jobs/test_ray.py has the cluster."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from fakes import openai_configuration
from promptmill.cluster.ray_cluster import RayCluster, _share
from promptmill.core.errors import PromptmillError


def test_limits_are_shared_out_so_that_they_hold_for_all_replicas_together() -> None:
    plan = openai_configuration("http://127.0.0.1:9/v1", rpm=60, tpm=1000, concurrency=10).plan
    share = _share(plan, 4).settings.backend_configs.openai
    assert (share.rpm, share.tpm, share.concurrency, share.num_workers) == (60, 1000, 2, 1)  # rates are leased
    assert RayCluster("auto", 20)._count(plan) == 10


def test_a_plan_can_be_sent_to_a_replica() -> None:
    plan = openai_configuration("http://127.0.0.1:9/v1").plan
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_a_cluster_that_is_not_there_is_told_without_ray_ending_the_process() -> None:
    pytest.importorskip("ray")

    async def load() -> None:
        backend = await RayCluster("127.0.0.1:9").create(openai_configuration("http://127.0.0.1:9/v1").plan)
        await backend.load(lambda _: None)

    with pytest.raises(PromptmillError, match="No Ray cluster answers at 127"):
        asyncio.run(load())
