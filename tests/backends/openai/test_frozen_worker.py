"""A worker process that is stopped is found out by its silence, ended and replaced; its rows cost no attempt."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import psutil
import pytest

from fakes import openai_configuration
from processtable import below
from promptmill.backends.protocol import Call, Completion, Facts
from promptmill.cluster import remote
from promptmill.core.request import conversation_from_prompt
from promptmill.service.service import Service
from replies import answer, late
from waiting import until


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="SIGSTOP")
async def test_a_worker_that_is_stopped_is_replaced(
    upstream: Any, monkeypatch: pytest.MonkeyPatch, closing: Any
) -> None:
    monkeypatch.setattr(remote, "_SILENCE_S", 6.0)
    upstream.reply = late(0.05, answer())
    service = closing(
        Service(openai_configuration(upstream.url, num_workers=2, bulk_threshold=1, concurrency=8, retries=1))
    )
    call = Call(Facts(total=200))
    items = [conversation_from_prompt(f"prompt {at}", "x") for at in range(200)]
    answering = asyncio.ensure_future(service.generate(items, call))
    await until(lambda: len(upstream.seen) > 20)
    victim = below("cluster.worker")[0]
    victim.send_signal(signal.SIGSTOP)
    outcomes = await answering
    assert not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
