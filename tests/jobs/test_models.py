"""Rows that name their model, and models that stand in for others, in jobs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from replies import answer, choose, status


def _models(bench: Any) -> list[str]:
    def model(name: str, **more: Any) -> dict[str, Any]:
        return {"openai": {"base_url": bench.upstream.url, "model_name": name, "max_delay": 0.01, "retries": 2}, **more}

    models = {
        "fast": model("small", sampling_params={"max_tokens": 7}, system_prompt="Be short."),
        "dead": model("gone", fallback=["fast"]),
    }
    return ["--set", f"models={json.dumps(models)}"]


@pytest.mark.parametrize("detached", [False, True])
def test_rows_are_answered_by_the_model_that_they_name_or_one_that_stands_in_for_it(
    bench: Any, *, detached: bool
) -> None:
    bench.upstream.reply = choose(lambda seen: status(401, "no") if seen.json["model"] == "gone" else answer())
    bench.write([{"prompt": "a"}, {"prompt": "b", "model": "fast"}, {"prompt": "c", "model": "dead"}])
    done = bench.run(*_models(bench), *(["--detach"] if detached else []))
    assert done.returncode == 0, done.stderr
    if detached:
        bench.wait(lambda: bench.status()["state"] == "finished")
    rows = bench.answers()
    assert [(row["answer"], row["answered_by"]) for row in rows] == [
        ("echo: a", "default"),
        ("echo: b", "fast"),
        ("echo: c", "fast"),
    ]
    sent = {seen.prompt: seen.json for seen in bench.upstream.seen if seen.json["model"] != "gone"}
    assert [sent[prompt]["model"] for prompt in "abc"] == ["test-model", "small", "small"]
    assert (sent["b"]["max_tokens"], sent["b"]["messages"][0]["content"]) == (7, "Be short.")
    assert "max_tokens" not in sent["a"]


def test_a_whole_job_may_run_on_a_named_model(bench: Any) -> None:
    bench.write([{"prompt": "a"}])
    done = bench.run(*_models(bench), "--model", "fast", "--temperature", "0")
    assert done.returncode == 0, done.stderr
    (seen,) = bench.upstream.seen
    assert (seen.json["model"], seen.json["max_tokens"], seen.json["temperature"]) == ("small", 7, 0)


def test_a_model_that_was_redefined_is_found_out_where_it_answered_rows(bench: Any) -> None:
    bench.write([{"prompt": "a", "model": "fast"}, {"prompt": "b", "model": "fast"}, {"prompt": "c", "model": "fast"}])
    was = _models(bench)
    assert bench.run(*was, "--limit", "1").returncode == 0
    other_dead = [was[0], was[1].replace('"gone"', '"away"')]  # which answered nothing
    assert bench.run(*other_dead, "--limit", "2").returncode == 0
    now = [was[0], was[1].replace('"small"', '"tiny"')]
    refused = bench.run(*now)
    assert refused.returncode == 2
    assert "models.fast" in refused.stderr
    assert "--accept-change" in refused.stderr
    assert len(bench.upstream.seen) == 2
    taken = bench.run(*now, "--accept-change")
    assert taken.returncode == 0, taken.stderr
    rows = bench.answers()
    assert [row.get("changed") for row in rows] == [None, None, ["models.fast"]]
    assert [seen.json["model"] for seen in bench.upstream.seen] == ["small", "small", "tiny"]
    assert bench.run(*now).returncode == 0
