"""Jobs on a real Ray cluster: three nodes on loopback."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from replies import answer, late
from waiting import PATIENCE_S, eventually

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None or sys.platform == "win32", reason="needs Ray"),
]
NODES = 3


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster with room for two replicas on each node but the driver's."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for folder in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
            patch.setenv(folder, str(tmp_path_factory.mktemp(folder.lower())))
        found = Cluster()
        found.add_node(num_cpus=0, include_dashboard=False)
        for _ in range(NODES - 1):
            found.add_node(num_cpus=2)
        found.wait_for_nodes()
        yield found
        found.shutdown()


def on(cluster: Any, *arguments: str) -> tuple[str, ...]:
    return ("--ray", cluster.address, *arguments)


def replicas() -> list[psutil.Process]:
    """The processes of actors on this machine, which Ray names after their class."""
    found = []
    for process in psutil.process_iter():
        try:
            if "ray::Replica" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_node_that_is_killed_costs_what_was_in_flight(bench, cluster):
    bench.upstream.reply = late(0.02, answer())
    rows = bench.prompts(5000)
    process = bench.start(*on(cluster, "--replicas", "4"), concurrency=64)
    eventually(lambda: len(bench.upstream.seen) > 1000)
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert [row["answer"] for row in bench.answers()] == [f"echo: {row['prompt']}" for row in rows]
    assert len(bench.upstream.seen) <= 5000 + 2 * 64
    assert bench.status()["done"] == 5000
    cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()


def test_cancelling_frees_all_replicas_at_once(bench, cluster):
    bench.upstream.reply = late(0.2, answer())
    bench.prompts(5000)
    process = bench.start(*on(cluster, "--replicas", "4"))
    eventually(lambda: len(replicas()) == 4)  # the first ones answer before the last one has started
    eventually(lambda: len(bench.upstream.seen) > 50)
    process.terminate()
    process.communicate(timeout=PATIENCE_S)
    eventually(lambda: not replicas())
    assert process.returncode == 143
    bench.upstream.reply = answer()
    assert bench.succeed(*on(cluster, "--replicas", "2"), apart=True)["done"] == 5000


def test_the_model_of_each_replica_answers(bench, cluster, tmp_path):
    rows = bench.prompts(24)
    config = tmp_path / "hf.yaml"
    block = {"model_name_or_path": "smollm2-135m-instruct"}
    settings = {"backend": "hf", "backend_configs": {"hf": block}, "sampling_params": {"max_tokens": 4}}
    config.write_text(json.dumps(settings))
    command: Callable[..., list[str]] = bench.command

    def with_hf(*arguments: str, **block: Any) -> list[str]:
        found = command(*arguments, **block)
        found[found.index("--config") + 1] = str(config)
        return found

    bench.command = with_hf
    found = bench.succeed(*on(cluster, "--replicas", "2"), apart=True)
    assert (found["done"], found["failed"], found["completion_tokens"]) == (len(rows), 0, 4 * len(rows))
    assert all(row["answer"] for row in bench.answers())
    eventually(lambda: not replicas())


def test_a_job_in_the_background_is_on_the_cluster_and_so_is_what_goes_on_with_it(bench, cluster):
    bench.upstream.reply = late(0.2, answer())
    bench.prompts(2000)
    job_id = json.loads(bench.run(*on(cluster, "--replicas", "2", "--detach", "--json"), apart=True).stdout)["job_id"]
    eventually(lambda: len(replicas()) == 2 and len(bench.upstream.seen) > 50)
    bench.run(job_id, "--cancel", command="jobs")
    eventually(lambda: not replicas() and not bench.status()["alive"])
    seen = len(bench.upstream.seen)
    resumed = bench.start(job_id, "--resume", "--json", command="jobs")
    eventually(lambda: len(replicas()) == 2 and len(bench.upstream.seen) > seen + 50)
    bench.upstream.reply = answer()
    said, problem = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, problem
    assert json.loads(said)["done"] == 2000
    eventually(lambda: not replicas())


def test_a_cluster_that_is_not_there_is_told(bench):
    bench.prompts(1)
    assert "No Ray cluster answers at 127.0.0.1:9" in bench.fail("--ray", "127.0.0.1:9", apart=True)
