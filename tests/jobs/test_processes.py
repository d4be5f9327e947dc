"""Which calls and jobs get worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from unittest import mock

import pytest
from PIL import Image

from bench import Bench
from fakes import openai_configuration
from promptmill.backends.protocol import Call, Facts
from promptmill.cluster import fan_out
from promptmill.core.request import conversation_from_prompt
from promptmill.service.list_call import ListSink
from promptmill.service.service import Service

BLOCK = {"concurrency": 512, "bulk_threshold": 1}
either_way = pytest.mark.parametrize("images", [["i.png"], []])


@pytest.fixture
def large(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[mock.Mock]:
    monkeypatch.chdir(bench.path)
    monkeypatch.setattr(fan_out, "usable_cores", lambda: 2)
    Image.new("RGB", (8, 8)).save("i.png")
    with mock.patch.object(fan_out, "LargeCall", wraps=fan_out.LargeCall) as large:
        yield large


@either_way
async def test_by_default_only_calls_with_images_get_processes(bench, large, images):
    item = conversation_from_prompt("a", "prompts[0]").with_images(images, None)
    async with aclosing(Service(openai_configuration(bench.upstream.url, **BLOCK))) as service:
        await service.answer([item] * 2, ListSink(2), Call(Facts(total=2)))
    assert large.called == bool(images)


@pytest.mark.thorough
@either_way
def test_by_default_only_jobs_with_images_get_processes(bench, large, images):
    bench.write([{"prompt": "a", "images": images}] * 2)
    bench.succeed(**BLOCK)
    assert large.called == bool(images)
