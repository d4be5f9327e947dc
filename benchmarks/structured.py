"""Structured answers: 200 schemas on an endpoint that answers well, sloppily and wrongly, and on the engines.

The schemas have the shapes of JSON-Schema-Test-Suite and of real tool calls: nesting, enums, unions, `$ref`, patterns,
bounds, unicode. What promptmill calls an answer is checked by another validator than its own.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from aiohttp import web
from jsonschema import Draft202012Validator

from benchmarks.field import Field
from benchmarks.measure import Row, every_core, interleaved, ratio
from promptmill.answers.response_format import asking_for
from promptmill.backends.protocol import Call, Completion, Facts
from promptmill.config.configuration import Configuration
from promptmill.core.request import conversation_from_prompt
from promptmill.service.service import Service

_SCHEMAS = 200
_TOKENS = 96
_MODEL = {"model_name_or_path": "smollm2-135m-instruct"}
_ENGINES = {"hf": "torch", "openvino": "openvino_genai", "vllm": "vllm"}
"""The engines, and the package that each needs; vLLM has an environment of its own."""
_AT_ONCE = 16
Pair = tuple[dict[str, Any], Any]


def _object(properties: dict[str, Any], *, optional: bool = False, **more: Any) -> dict[str, Any]:
    required = [] if optional else list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


def _family(number: int) -> Pair:
    """Return a schema and an answer that satisfies it; the number varies names and bounds."""
    name = ("name", "città", "名前", "a b", "x-y_z")[number // 10 % 5]
    text, count = {"type": "string"}, {"type": "integer", "minimum": number % 7, "maximum": number % 7 + 100}
    address = {"$defs": {"address": _object({"street": text, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}})}}
    home = {"street": "x", "zip": "01234"}
    families: list[Pair] = [
        (_object({name: text, "count": count}), {name: "x", "count": number % 7 + 1}),
        (_object({name: {"enum": ["red", "grün", None, number]}}), {name: "grün"}),
        (_object({"is": {"type": "boolean"}, name: {"type": "number"}}, optional=True), {"is": True}),
        (_object({name: {"anyOf": [count, {"type": "null"}, _object({"a": text})]}}), {name: {"a": "x"}}),
        (_object({name: {"$ref": "#/$defs/address"}}) | address, {name: home}),
        (_object({"items": {"type": "array", "items": count, "minItems": 1, "maxItems": 3}}), {"items": [number % 7]}),
        (_object({name: _object({"a": _object({"b": _object({"c": text})})})}), {name: {"a": {"b": {"c": "x"}}}}),
        (_object({"date": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"}}), {"date": "2020-01-31"}),
        (_object({"tool": {"const": f"t{number}"}, "arguments": _object({name: text})}), {"tool": f"t{number}"}),
        ({"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 4}, ["a", "b"]),
    ]
    schema, found = families[number % 10]
    if number % 10 == 8:
        found = {**found, "arguments": {name: "x"}}
    return schema, found


class _Endpoint:
    """A loopback endpoint whose answers are right, sloppily written, or wrong once or always."""

    def __init__(self, pairs: list[Pair]) -> None:
        self._pairs = pairs
        self._asked: dict[int, int] = {}

    async def __call__(self, request: web.Request) -> web.Response:
        body = await request.json()
        number = int(next(m["content"] for m in body["messages"] if m["role"] == "user").split()[1])
        self._asked[number] = self._asked.get(number, 0) + 1
        right = json.dumps(self._pairs[number][1], ensure_ascii=False)
        wrong = '{"wrong": 1}'
        said = (
            right,
            f"Sure! Here it is:\n```json\n{right[:-1]},{right[-1]}\n```\nI hope this helps.",
            wrong if self._asked[number] == 1 else right,
            wrong,
        )[number // 10 % 4]
        message = {"role": "assistant", "content": said}
        usage = {"prompt_tokens": 10, "completion_tokens": 10}
        return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})


async def _answered(service: Service, pairs: list[Pair]) -> dict[str, int]:
    """Return how many answers there were, were silently invalid, and failed in words."""
    found = {"answers": 0, "silently invalid": 0, "failed": 0}
    room = asyncio.Semaphore(_AT_ONCE)

    async def ask(number: int, schema: dict[str, Any]) -> None:
        config = service.config.with_sampling({"response_format": asking_for(schema)})
        item = conversation_from_prompt(f"schema {number} : answer in JSON.", "")
        async with room:
            (outcome,) = await service.generate([item], Call(Facts(total=1)), config=config)
        if not isinstance(outcome, Completion):
            found["failed"] += 1
            return
        found["answers"] += 1
        try:
            valid = Draft202012Validator(schema).is_valid(json.loads(outcome.text))
        except ValueError:
            valid = False
        found["silently invalid"] += not valid

    await asyncio.gather(*(ask(number, schema) for number, (schema, _) in enumerate(pairs)))
    return found


async def structured(field: Field, pairs: int) -> list[Row]:
    """Ask for all schemas once on the endpoint and on every engine that is installed."""
    del pairs
    asked = [_family(number) for number in range(_SCHEMAS)]
    rows = [await _on_endpoint(asked)]
    with every_core(field.outer):
        rows += [await _on_engine(asked, name) for name, package in _ENGINES.items() if find_spec(package)]
    return rows


async def _on_endpoint(asked: list[Pair]) -> Row:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", _Endpoint(asked))
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    block = {"openai": {"base_url": f"http://127.0.0.1:{port}/v1", "model_name": "m", "api_key": "k"}}
    service = Service(Configuration({"backend": "openai", "backend_configs": block}))
    try:
        found = await _answered(service, asked)
    finally:
        await service.aclose()
        await runner.cleanup()
    return _row("an endpoint that answers well, sloppily and wrongly", found)


async def _on_engine(asked: list[Pair], name: str) -> Row:
    sampling = {"temperature": 0, "max_tokens": _TOKENS}
    service = Service(Configuration({"backend": name, "backend_configs": {name: _MODEL}, "sampling_params": sampling}))
    try:
        found = await _answered(service, asked)
        assert service.state == "ready", "the engine lives"
    finally:
        await service.aclose()
    return _row(name, found)


def _row(where: str, found: dict[str, int]) -> Row:
    detail = f"{found['answers']} answers, {found['failed']} failed in words"
    what = f"{_SCHEMAS} schemas on {where}: silently invalid answers"
    return Row("structured", what, float(found["silently invalid"]), 0, unit="", detail=detail, raw=found)


async def mask(field: Field, pairs: int) -> list[Row]:
    """Compare tokens per second of hf under a schema and free, the same number of tokens each."""
    with every_core(field.outer):
        return await _mask(pairs)


async def _mask(pairs: int) -> list[Row]:
    # ends at `max_tokens` in both cases: an array of texts that may go on for ever
    schema = {"type": "array", "items": {"type": "string", "minLength": 2000}, "minItems": 50}
    service = Service(Configuration({"backend": "hf", "backend_configs": {"hf": _MODEL}}))

    def run(changes: dict[str, Any]) -> Callable[[], Any]:
        async def tokens_per_s() -> float:
            given = {"temperature": 0, "max_tokens": _TOKENS, **changes}
            config = service.config.with_sampling(given)
            items = [conversation_from_prompt(f"Write a long story about the number {n}.", "") for n in range(8)]
            call = Call(Facts(total=len(items)))
            started = time.perf_counter()
            await service.generate(items, call, config=config)
            return call.counts.completion_tokens / (time.perf_counter() - started)

        return tokens_per_s

    free, held = run({}), run({"response_format": asking_for(schema)})
    try:
        await free(), await held()
        found = await interleaved(pairs, held=held, free=free)
    finally:
        await service.aclose()
    value, spread = ratio(found["held"], found["free"])
    detail = f"{statistics.median(found['held']):.1f} / {statistics.median(found['free']):.1f} tokens/s"
    what = "hf under a JSON Schema over hf without one, tokens/s"
    return [Row("mask", what, value, 0.95, ">=", spread=spread, detail=detail, raw=found)]
