"""OpenAI's Responses API without state: the provider stores nothing, unless `store` is set.

Format: developers.openai.com/api/reference/resources/responses, and the types of the package openai 3.57.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from promptmill.backends.openai import citations
from promptmill.backends.openai.chat_completion import CutOffError
from promptmill.backends.openai.dialects import dialect
from promptmill.backends.openai.providers import ProviderProfile, translate
from promptmill.backends.openai.schema_forms import asked_of
from promptmill.core.request import AudioPart, Conversation, ImagePart, Message, TextPart
from promptmill.core.values import JsonDict, JsonObject

PATH = "/responses"
url, headers = dialect.same_url, dialect.bearer
STREAMED: JsonObject = {"stream": True}
FILLED = frozenset({"input", "background"})

# Parameters of chat completions that this API lacks.
_UNKNOWN = dialect.set_of(
    "seed stop presence_penalty frequency_penalty n logit_bias modalities audio prediction web_search_options "
    "functions function_call structured_outputs"
)
_LOGPROBS = "message.output_text.logprobs"
_BETWEEN_THOUGHTS = "\n\n"
_FINISHES = {"max_output_tokens": "length", "max_messages": "length"}
_COSTS = ("cost", "cost_in_usd_ticks", "is_byok")  # Perplexity and OpenRouter, xAI
_READ = dialect.set_of(
    "output usage error status incomplete_details text tools tool_choice instructions input reasoning object"
)


def base(base: str) -> str:
    """Return the path of the API's base URL."""
    return base


# Requests


def parameters(profile: ProviderProfile, model: str, sampling: JsonObject, extra: JsonObject) -> dialect.Written:
    """Return the parameters in the format of this API."""
    given = {name: value for name, value in {**sampling, **extra}.items() if value is not None}
    words = ""
    wanted = given.pop("response_format", None)
    if wanted is not None:
        form, words = asked_of(profile.json, wanted)
        given |= {} if form is None else {"response_format": form}
    body, refused = translate(profile, model, given)
    refused += dialect.dropped(body, _UNKNOWN)
    for name in ("max_completion_tokens", "max_tokens"):
        if name in body:
            body["max_output_tokens"] = body.pop(name)
    if (effort := body.pop("reasoning_effort", None)) is not None:
        body["reasoning"] = {"effort": effort, **(body.get("reasoning") or {})}
    if (verbosity := body.pop("verbosity", None)) is not None:
        body["text"] = {"verbosity": verbosity, **(body.get("text") or {})}
    if (form := body.pop("response_format", None)) is not None:
        body["text"] = {"format": _format(form), **(body.get("text") or {})}
    if body.pop("logprobs", None):
        body["include"] = [*(body.get("include") or ()), _LOGPROBS]
    if "tools" in body:
        tools = dialect.functions_in(body["tools"])
        body["tools"] = [_tool(tool) if is_function else tool for tool, is_function in tools]
    if (chosen := dialect.named_function(body.get("tool_choice"))) is not None:
        body["tool_choice"] = {"type": "function", "name": chosen}
    return dialect.Written({"model": model, "store": False} | body, refused, words)


def _format(form: JsonObject) -> JsonObject:
    if form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "name": "answer", **form["json_schema"]}


def _tool(function: JsonObject) -> JsonDict:
    return {"type": "function", "parameters": None, "strict": False, **function}


def conversation(conversation: Conversation, images: Mapping[str, bytes]) -> list[bytes]:
    """Return `input`."""
    return [b'"input":', *dialect.joined(item for message in conversation.messages for item in _items(message, images))]


def _items(message: Message, images: Mapping[str, bytes]) -> Iterator[list[bytes]]:
    if message.role == "tool":
        identity = (message.extra or {}).get("tool_call_id", "")
        output = {"type": "function_call_output", "call_id": identity, "output": dialect.text_of_message(message)}
        yield [orjson.dumps(output)]
        return
    start = b'{"role":"%b","content":' % message.role.encode()
    if message.role == "assistant" or not isinstance(message.content, tuple):
        if text := dialect.text_of_message(message):
            yield [start, orjson.dumps(text), b"}"]
    else:
        yield [start, *dialect.joined(_part(part, images) for part in message.content), b"}"]
    for identity, name, arguments, _ in dialect.calls_of(message):
        text = dialect.exact_json(arguments).decode()
        yield [orjson.dumps({"type": "function_call", "call_id": identity, "name": name, "arguments": text})]


def _part(part: TextPart | ImagePart | AudioPart, images: Mapping[str, bytes]) -> list[bytes]:
    if isinstance(part, TextPart):
        return [b'{"type":"input_text","text":%b}' % orjson.dumps(part.text)]
    if isinstance(part, AudioPart):
        audio = {"type": "input_audio", "input_audio": {"data": part.data, "format": part.format}}
        return [orjson.dumps(audio)]
    detail = orjson.dumps(part.detail or "auto")
    return [b'{"type":"input_image","detail":%b,"image_url":' % detail, images[part.source], b"}"]


# Replies


def completion(payload: JsonDict, _: Mapping[str, str]) -> JsonDict | None:
    """Convert a response to a chat completion."""
    items = payload.get("output")
    if not isinstance(items, list) or payload.get("error"):
        return None
    texts: list[str] = []
    refusals: list[str] = []
    thoughts: list[str] = []
    calls: list[JsonDict] = []
    others: list[JsonDict] = []
    logprobs: list[Any] = []
    annotations: list[JsonDict] = []
    results: list[Any] = []
    messages = [one for one in items if isinstance(one, dict) and _is_message(one)]
    final = [one for one in messages if one.get("phase") == "final_answer"]
    answers = {*map(id, final or [one for one in messages if not _is_commentary(one)] or messages)}
    for item in items:
        match item:
            case {"type": "message", "content": list(parts)} if id(item) not in answers:
                thoughts += [part["text"] for part in parts if part.get("type") == "output_text"]
            case {"type": "message", "content": list(parts)}:
                for part in parts:
                    texts += [part["text"]] if part.get("type") == "output_text" else []
                    refusals += [part["refusal"]] if part.get("type") == "refusal" else []
                    logprobs += part.get("logprobs") or ()
                    annotations += [one for one in dialect.listed(part, "annotations") if isinstance(one, dict)]
            case {"type": "reasoning"}:
                parts = [*(item.get("summary") or ()), *(item.get("content") or ())]
                thoughts += [part["text"] for part in parts if isinstance(part.get("text"), str)]
            case {"type": "function_call"}:
                calls.append(
                    dialect.call(str(item.get("call_id") or ""), item.get("name"), item.get("arguments") or "{}")
                )
            case {"type": "search_results", "results": list(pages)}:  # of Perplexity
                results += pages
            case {"type": str()}:
                others.append(item)
    message = {
        "content": "".join(texts),
        "refusal": "".join(refusals),
        "reasoning_content": _BETWEEN_THOUGHTS.join(thoughts),
        "tool_calls": calls,
        "annotations": [_annotation(one) for one in annotations],
        "output_items": others,
    }
    finish = _finish(payload, calls=bool(calls))
    choice = {"logprobs": {"content": logprobs}} if logprobs else {}
    usage = dialect.with_searches(_usage(payload.get("usage")), searches_in(items))
    chat = dialect.chat_completion(payload, _READ, message, finish, usage, **choice)
    return chat | ({"search_results": results} if results else {})


def _annotation(one: JsonDict) -> JsonDict:
    is_page = one.get("type") == "url_citation"
    return citations.url_citation(one.get("url"), one.get("title")) if is_page else one


def searches_in(items: list[Any]) -> int:
    """Return the number of searches of the web among the items of a response. Opening a page is none."""
    return sum(map(_is_search, items))


def _is_search(item: Any) -> bool:
    match item:
        case {"type": "search_results"}:
            return True
        case {"type": "web_search_call", "action": {"type": str(action)}}:
            return action == "search"
        case {"type": "web_search_call"}:
            return True
    return False


def _finish(payload: JsonObject, *, calls: bool) -> str:
    status = payload.get("status") or "completed"
    if status == "completed":
        return "tool_calls" if calls else "stop"
    details = payload.get("incomplete_details")
    reason = details.get("reason") if isinstance(details, dict) else None
    if reason == "content_filter":
        return "content_filter"
    return _FINISHES.get(str(reason), f"error: {reason or status}")


def _usage(usage: Any) -> JsonDict:
    if not isinstance(usage, dict):
        return {}
    inputs, outputs = usage.get("input_tokens_details") or {}, usage.get("output_tokens_details") or {}
    counts = dialect.chat_usage(
        usage.get("input_tokens"),
        usage.get("output_tokens"),
        inputs.get("cached_tokens"),
        inputs.get("cache_write_tokens"),
        outputs.get("reasoning_tokens"),
    )
    return counts | {name: usage[name] for name in _COSTS if name in usage}


def _is_message(item: JsonObject) -> bool:
    return item.get("type") == "message"


def _is_commentary(item: JsonObject) -> bool:
    """Return whether an item is what a model says between its steps: not its answer, if it has one."""
    return _is_message(item) and item.get("phase") == "commentary"


def assemble(events: Iterator[JsonDict]) -> JsonDict:
    """Return the response at the end of a stream, or its error."""
    begun = False
    streamed = _StreamedItems()
    for event in events:
        kind = event.get("type")
        if kind in {"response.completed", "response.incomplete", "response.failed"}:
            response: JsonDict = event["response"]
            return {**response, "output": streamed.filled(response.get("output"))} if streamed.items else response
        if kind == "error" or event.get("error"):
            said = event if kind != "error" or event.get("error") else {"error": event}
            return {**said, **({"choices": [{}]} if begun else {})}
        begun = begun or str(kind).endswith(".delta")
        streamed.add(event)
    raise CutOffError


class _StreamedItems:
    """The items of a response from the events of its stream: some gateways leave them out of the `output` at the end,
    or leave out their texts."""

    def __init__(self) -> None:
        self.items: dict[int, JsonDict] = {}
        self._texts: dict[tuple[int, int], list[str]] = {}
        """By the numbers of the item and of its part."""

    def add(self, event: JsonDict) -> None:
        match event:
            case {"type": "response.output_item.added" | "response.output_item.done", "item": dict(item)}:
                self.items[event["output_index"]] = item
            case {"type": str(kind), "output_index": int(at)} if kind in _TEXTS:
                item_type, field = _TEXTS[kind]
                if isinstance(text := event.get(field), str):
                    self.items.setdefault(at, {"type": item_type})
                    texts = self._texts.setdefault((at, event.get("content_index") or 0), [])
                    if field == "delta" or not texts:  # an event of the end repeats the pieces
                        texts.append(text)

    def filled(self, output: Any) -> list[JsonDict]:
        """Return the items of `output` with the texts and calls that it lacks."""
        texts: dict[int, str] = {}
        for at, part in sorted(self._texts):
            texts[at] = texts.get(at, "") + "".join(self._texts[at, part])
        streamed = {at: _with_text(self.items[at], texts.get(at, "")) for at in sorted(self.items)}
        if not output:
            return [*streamed.values()]
        places = {_identity(item): at for at, item in streamed.items()}
        items = [_with_text(item, texts.get(places.get(_identity(item), at), "")) for at, item in enumerate(output)]
        known = {*map(_identity, items)}
        calls = [item for item in streamed.values() if item.get("type") == "function_call"]
        return [*items, *(call for call in calls if _identity(call) not in known)]


def _identity(item: JsonObject) -> tuple[object, object]:
    return item.get("type"), item.get("call_id") or item.get("id")


# The types of the items to which the pieces of a stream belong, and the fields with their texts.
_TEXTS = {
    "response.output_text.delta": ("message", "delta"),
    "response.output_text.done": ("message", "text"),
    "response.reasoning_summary_text.delta": ("reasoning", "delta"),
    "response.reasoning_text.delta": ("reasoning", "delta"),
    "response.function_call_arguments.delta": ("function_call", "delta"),
    "response.function_call_arguments.done": ("function_call", "arguments"),
}


def _with_text(item: JsonDict, text: str) -> JsonDict:
    match item.get("type"):
        case "message" if not item.get("content"):
            return {**item, "content": [{"type": "output_text", "text": text}]}
        case "reasoning" if not (item.get("content") or item.get("summary")):
            return {**item, "content": [{"type": "reasoning_text", "text": text}]}
        case "function_call" if not item.get("arguments"):
            return {**item, "arguments": text}
    return item


def delta_in(event: JsonDict) -> JsonDict:
    """Convert an event to a delta of a chat completion."""
    match event:
        case {"type": "response.output_text.delta", "delta": text}:
            return {"content": text, "item": event.get("output_index")}
        case {"type": "response.reasoning_summary_text.delta" | "response.reasoning_text.delta", "delta": text}:
            return {"reasoning_content": text}
        case {"type": "response.reasoning_summary_text.done" | "response.reasoning_text.done"}:
            return {"reasoning_content": _BETWEEN_THOUGHTS}
        case {"type": "response.output_item.added", "item": {"phase": "commentary"}}:
            return {"hidden": event["output_index"]}  # only the end shows whether it is the answer
        case {"type": "response.output_item.added", "item": {"type": "function_call"} as item}:
            begun = {"id": item.get("call_id"), "function": {"name": item.get("name")}}
            return {"tool_calls": [{"index": event["output_index"], **begun}]}
        case {"type": "response.function_call_arguments.delta", "delta": text}:
            return {"tool_calls": [{"index": event["output_index"], "function": {"arguments": text}}]}
    return {}
