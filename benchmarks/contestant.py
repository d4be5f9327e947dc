"""One way of sending chat requests, as a process of its own: `python -m benchmarks.contestant NAME URL`.

Reads jobs from stdin (`{"prompts": n, "in_flight": n}`, perhaps with `images`), writes what each took to stdout. Every
contestant builds the same body from a prompt, sends it, and takes the answer's text out of the reply.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

Ask = Callable[[Any], Awaitable[str]]
SAMPLING = {"temperature": 0.2, "top_p": 0.9, "max_tokens": 512}
_SPARE_DESCRIPTORS = 64


def prompt(index: int) -> str:
    """Return a small prompt that no other index has."""
    return f"Question {index}: what is the capital of France, and on which river does it lie?"


def _messages(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def _with_image(text: str, path: str) -> list[dict[str, Any]]:
    """Return the parts of a message as people write them by hand."""
    url = "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()
    return [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]


def bare(url: str, in_flight: int) -> tuple[Ask, Callable[[], Awaitable[None]]]:
    """Aiohttp and orjson, nothing else."""
    import aiohttp
    import orjson

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight))
    headers = {"Content-Type": "application/json", "Authorization": "Bearer none"}
    target = f"{url}/chat/completions"

    async def ask(content: Any) -> str:
        body = orjson.dumps({"model": "bench", **SAMPLING, "messages": _messages(content)})
        async with session.post(target, data=body, headers=headers) as response:
            reply = orjson.loads(await response.read())
        return reply["choices"][0]["message"]["content"]

    return ask, session.close


def openai(url: str, in_flight: int) -> tuple[Ask, Callable[[], Awaitable[None]]]:
    """The `openai` package as shipped."""
    del in_flight
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=url, api_key="none")

    async def ask(content: Any) -> str:
        reply = await client.chat.completions.create(model="bench", messages=_messages(content), **SAMPLING)
        return reply.choices[0].message.content

    return ask, client.close


def litellm(url: str, in_flight: int) -> tuple[Ask, Callable[[], Awaitable[None]]]:
    """The `litellm` package as shipped."""
    del in_flight
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for prices before it starts
    from litellm import acompletion

    async def ask(content: Any) -> str:
        reply = await acompletion("openai/bench", messages=_messages(content), api_base=url, api_key="none", **SAMPLING)
        return reply.choices[0].message.content

    async def close() -> None:
        pass

    return ask, close


CONTESTANTS = {contestant.__name__: contestant for contestant in (bare, openai, litellm)}


async def _work(ask: Ask, job: dict[str, Any]) -> dict[str, float]:
    """Answer the job's prompts and return seconds, CPU seconds and the number of answers."""
    answers = [""] * job["prompts"]
    images: list[str] | None = job.get("images")
    indices: Iterator[int] = iter(range(job["prompts"]))

    async def worker() -> None:
        for index in indices:
            text = prompt(index)
            answers[index] = await ask(_with_image(text, images[index]) if images else text)

    used, started = time.process_time(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(min(job["in_flight"], job["prompts"]))))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "cpu_s": time.process_time() - used, "answers": sum(map(bool, answers))}


async def _serve(make: Callable[[str, int], tuple[Ask, Callable[[], Awaitable[None]]]], url: str, most: int) -> None:
    ask, close = make(url, most)
    loop = asyncio.get_running_loop()
    print("{}", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await _work(ask, json.loads(line))), flush=True)
    await close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("url")
    parser.add_argument("in_flight", type=int)
    arguments = parser.parse_args()
    need = arguments.in_flight + _SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(need, hard), hard))
    work = _serve(CONTESTANTS[arguments.name], arguments.url, arguments.in_flight)
    if arguments.name == "bare":
        import uvloop

        uvloop.run(work)
    else:
        asyncio.run(work)


if __name__ == "__main__":
    main()
