"""Batches whose prompts share a long beginning: one request warms the provider's cache for the others."""

from __future__ import annotations

from typing import Any

import promptmill
from batch_server import BatchServer


def test_a_batch_of_one_request_warms_the_cache_for_the_next_batch(tmp_path, monkeypatch):
    with BatchServer("anthropic") as server:
        sent = list[tuple[list[Any], list[str]]]()
        create = server.create

        def noted(rows: list[Any], **known: Any) -> Any:
            sent.append(([body for _, body in rows], server.running()))
            return create(rows, **known)

        monkeypatch.setattr(server, "create", noted)
        (tmp_path / "in.csv").write_text("text\n" + "".join(f"text {n}\n" for n in range(20)), encoding="utf-8")
        block = {"provider": "anthropic", "base_url": server.base_url, "api_key": "k", "model_name": "m"}
        settings = {"backend": "openai", "backend_configs": {"openai": block}}
        system = "document " + "word " * 1200
        given: dict[str, Any] = {"prompt": "Say {{text}}", "system": system, "max_tokens": 20, "progress": False}
        given |= {"batch": True, "poll": "0.1s", "state": tmp_path / "jobs", "settings": settings}
        result = promptmill.bulk(tmp_path / "in.csv", tmp_path / "out.csv", **given)
        assert result.status["batch"]["by_batch"] == 20
        assert not server.left_files()
    assert [(len(bodies), running) for bodies, running in sent] == [(1, []), (19, [])]
    marks = [block["cache_control"] for bodies, _ in sent for body in bodies for block in body["system"]]
    assert marks == [{"type": "ephemeral", "ttl": "1h"}] * 20
