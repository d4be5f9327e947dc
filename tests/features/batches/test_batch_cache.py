"""Batches whose prompts share a long beginning: one request warms the provider's cache for the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import promptmill
from batch_server import BatchServer

SYSTEM = "document " + "word " * 1200


def sent_in_batches(folder: Path, monkeypatch: pytest.MonkeyPatch, provider: str, model: str, system: str) -> list[Any]:
    """Answer twenty rows by batch; return the bodies of each batch, with the batches that ran when it was made."""
    with BatchServer(provider) as server:
        sent = list[tuple[list[Any], list[str]]]()
        create = server.create

        def noted(rows: list[Any], **known: Any) -> Any:
            sent.append(([body for _, body in rows], server.running()))
            return create(rows, **known)

        monkeypatch.setattr(server, "create", noted)
        (folder / "in.csv").write_text("text\n" + "".join(f"text {n}\n" for n in range(20)), encoding="utf-8")
        block = {"provider": provider, "base_url": server.base_url, "api_key": "k", "model_name": model}
        settings = {"backend": "openai", "backend_configs": {"openai": block}}
        given: dict[str, Any] = {"prompt": "Say {{text}}", "system": system, "max_tokens": 20, "progress": False}
        given |= {"batch": True, "poll": "0.1s", "state": folder / "jobs", "settings": settings}
        result = promptmill.bulk(folder / "in.csv", folder / "out.csv", **given)
        assert result.status["batch"]["by_batch"] == 20
        assert not server.left_files()
    return sent


def test_a_batch_of_one_request_warms_the_cache_for_the_next_batch(tmp_path, monkeypatch):
    sent = sent_in_batches(tmp_path, monkeypatch, "anthropic", "m", SYSTEM)
    assert [(len(bodies), running) for bodies, running in sent] == [(1, []), (19, [])]
    marks = [block["cache_control"] for bodies, _ in sent for body in bodies for block in body["system"]]
    assert marks == [{"type": "ephemeral", "ttl": "1h"}] * 20


@pytest.mark.thorough
@pytest.mark.parametrize("system", [SYSTEM, "short"])
def test_a_batch_at_gpt_5_6_has_breakpoints(tmp_path, monkeypatch, system):
    ((bodies, _),) = sent_in_batches(tmp_path, monkeypatch, "openai", "gpt-5.6-luna", system)
    assert [body["prompt_cache_options"] for body in bodies] == [{"mode": "explicit"}] * 20
    marked = ["prompt_cache_breakpoint" in str(body["messages"][0]) for body in bodies]
    assert marked == [system is SYSTEM] * 20


def test_equal_rows_of_a_batch_are_charged_as_billed_with_a_cache(tmp_path):
    (tmp_path / "in.csv").write_text("text\n" + "one\ntwo\n" * 3, encoding="utf-8")
    with BatchServer("openai") as server:
        settings = {"cache": str(tmp_path / "cache"), "price": {"input": 1e6, "output": 1e6, "batch": 0.5}}
        given: dict[str, Any] = {"prompt": "Say {{text}}", "temperature": 0, "batch": True, "poll": "0.1s"}
        given |= {"model": "m", "base_url": server.base_url, "api_key": "k", "settings": settings, "progress": False}
        first = promptmill.bulk(tmp_path / "in.csv", tmp_path / "out.csv", **given).status
        assert (first["cost"], first["batch"]["by_batch"]) == (server.tokens.total() / 2, 6)
        second = promptmill.bulk(tmp_path / "in.csv", tmp_path / "second.csv", **given).status
        assert (second.get("cost", 0), second["cached"], server.creates) == (0, 6, 1)
