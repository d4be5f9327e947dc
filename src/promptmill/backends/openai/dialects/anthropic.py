"""Anthropic's Messages API.

Format: platform.claude.com/docs/en/api/messages, and the types of the package anthropic 2.13.0. Requests name the API
version 2023-06-01, which gateways support; the setting `headers` may name a newer version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from promptmill.answers.response_format import schema_of
from promptmill.backends.openai.chat_completion import CutOffError, continued, later_finish
from promptmill.backends.openai.citations import url_citation
from promptmill.backends.openai.dialects import dialect
from promptmill.backends.openai.providers import ProviderProfile
from promptmill.backends.openai.schema_forms import closed_form, in_words
from promptmill.core.request import ROLES, Conversation, FileKind, Message, Part, TextPart
from promptmill.core.values import JsonDict, JsonObject

NAME = "anthropic"
PATH = "/messages"
url = dialect.same_url
STREAMED: JsonObject = {"stream": True}
FILLED = frozenset({"messages", "system"})
FILES: frozenset[FileKind] = frozenset({"pdf"})
MARKS, MARKED = frozenset({"cache_control"}), ROLES
DEFAULT_TOKENS = 16_384
"""The `max_tokens` of requests without a limit, because the API requires one. With a larger value, answers must be
streamed, or connections may be lost. It is doubled for a thinking model, because thoughts count, too."""

# Parameters of chat completions that this API lacks.
_UNKNOWN = dialect.set_of(
    "seed presence_penalty frequency_penalty min_p repetition_penalty n logit_bias logprobs top_logprobs store "
    "modalities audio prediction prompt_cache_key prompt_cache_retention safety_identifier verbosity "
    "web_search_options functions function_call chat_template_kwargs structured_outputs"
)
# Facts about models: platform.claude.com/docs/en/build-with-claude/thinking, .../effort, .../structured-outputs.
_NAMED = re.compile(
    r"claude-(?:(?P<old>[23])|instant|(?P<line>[a-z]+)-(?P<major>\d+)(?:[-.](?P<minor>\d{1,2}))?(?!\d))"
)
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16_384, "xhigh": 24_576, "max": 24_576}
_LEAST_BUDGET = 1024

# A paused turn is not continued. Its answer counts as truncated, so the setting `again: truncated` requests it again.
_FINISHES = {"end_turn": "stop", "stop_sequence": "stop", "tool_use": "tool_calls", "pause_turn": "length"}
_PROMPT = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
# Types of iterations that are billed, although the usage's own counts omit them: platform.claude.com/docs/en/
# build-with-claude/compaction, and .../advisor-tool. A declined `fallback_message` is not billed.
_LEFT_OUT = frozenset({"compaction", "advisor_message"})
_AN_HOUR = "ephemeral_1h_input_tokens"
_READ = frozenset({"type", "role", "content", "stop_reason", "usage", "stop_details"})


def base(base: str) -> str:
    """Return the path of the API's base URL, which ends with the version."""
    return dialect.versioned(base, "v1")


def headers(key: str) -> dict[str, str]:
    """Return the headers for the key and the version."""
    return {"anthropic-version": "2023-06-01"} | ({"x-api-key": key} if key else {})


# Requests


def parameters(
    profile: ProviderProfile, model: str, sampling: JsonObject, extra: JsonObject
) -> dialect.WrittenParameters:
    """Return the parameters in the format of this API."""
    body = {name: value for name, value in {**sampling, **extra}.items() if value is not None}
    refused = dialect.dropped(body, _UNKNOWN)
    if profile.parameters.are_for_reasoning(model):
        refused += dialect.dropped(body, profile.parameters.reasoning_refused | {"top_k"})
    asked = body.pop("max_tokens", None), body.pop("max_completion_tokens", None)
    longest = next((count for count in asked if count is not None), None)
    if body.get("top_k", 1) <= 0:
        del body["top_k"]
    if "stop" in body:
        stops = body.pop("stop")
        body.setdefault("stop_sequences", [stops] if isinstance(stops, str) else stops)
    if "user" in body:
        body["metadata"] = {"user_id": body.pop("user"), **(body.get("metadata") or {})}
    refused += _think(body, model, longest)
    words = _format(body, model)
    _use_tools(body)
    thinks = (body.get("thinking") or {}).get("type") in {"enabled", "adaptive"} or _version(model) >= (5, 0)
    default = 4096 if _version(model) < (4, 0) else (1 + thinks) * DEFAULT_TOKENS
    return dialect.WrittenParameters({"model": model, "max_tokens": longest or default} | body, refused, words)


def _version(model: str) -> tuple[int, int]:
    """Return the version of a model. An unknown model gets the version of the newest models."""
    match = _NAMED.search(model)
    if match is None:
        return (5, 0)
    if not match["major"]:
        return (3, 0)
    return int(match["major"]), int(match["minor"] or 0)


def _line(model: str) -> str:
    match = _NAMED.search(model)
    return (match["line"] or "") if match else ""


def _think(body: JsonDict, model: str, longest: int | None) -> list[str]:
    """Convert `enable_thinking` and `reasoning_effort` to `thinking` and `effort`. Return unsupported parameters."""
    wanted, effort = body.pop("enable_thinking", None), body.pop("reasoning_effort", None)
    if effort == "none":
        wanted, effort = False, None
    version, line = _version(model), _line(model)
    adapts = version >= (4, 6)
    refused: list[str] = []
    if effort is not None and (adapts or (version, line) == ((4, 5), "opus")):
        level = "low" if effort == "minimal" else effort
        body["output_config"] = {"effort": level, **(body.get("output_config") or {})}
    if "thinking" in body:
        return refused
    if wanted is False:
        if version < (5, 0):  # older models think only if the request asks for it
            return refused
        if line in {"fable", "mythos"} or (line == "opus" and version >= (5, 5)):
            return ["enable_thinking"]
        body["thinking"] = {"type": "between_tools" if line == "sonnet" and version >= (5, 5) else "disabled"}
    elif (wanted or effort is not None) and adapts:
        body["thinking"] = {"type": "adaptive", "display": "summarized"}
    elif (wanted or effort is not None) and version >= (4, 0):
        budget = _BUDGETS.get(str(effort), _BUDGETS["medium"])
        budget = min(budget, longest // 2 if longest is not None else budget)
        if budget < _LEAST_BUDGET:
            return ["enable_thinking" if wanted else "reasoning_effort"]
        body["thinking"] = {"type": "enabled", "budget_tokens": budget}
    elif wanted or effort is not None:
        refused.append("enable_thinking" if wanted else "reasoning_effort")
    return refused


def _format(body: JsonDict, model: str) -> str:
    """Convert `response_format` to a format that the provider enforces, or return instructions for the prompt."""
    wanted = body.pop("response_format", None)
    schema = schema_of(wanted) if isinstance(wanted, Mapping) else None
    if wanted is None or schema is None:
        return ""
    closed = closed_form(schema) if _version(model) >= (4, 5) else None
    if closed is None:
        return in_words(wanted)
    body["output_config"] = {"format": {"type": "json_schema", "schema": closed}, **(body.get("output_config") or {})}
    return ""


def _use_tools(body: JsonDict) -> None:
    if "tools" in body:
        body["tools"] = [
            _tool(tool) if is_function else tool for tool, is_function in dialect.functions_in(body["tools"])
        ]
    choice, parallel = body.pop("tool_choice", None), body.pop("parallel_tool_calls", None)
    if isinstance(choice, str):
        choice = {"type": {"required": "any"}.get(choice, choice)}
    elif (name := dialect.named_function(choice)) is not None:
        choice = {"type": "tool", "name": name}
    if parallel is False and "tools" in body:
        choice = {"type": "auto", **(choice or {}), "disable_parallel_tool_use": True}
    if choice is not None:
        body["tool_choice"] = choice


def _tool(function: JsonObject) -> JsonDict:
    tool = {"name": function.get("name"), "input_schema": function.get("parameters") or {"type": "object"}}
    return tool | {name: function[name] for name in ("description", "strict") if function.get(name)}


def conversation(conversation: Conversation, images: Mapping[str, bytes]) -> list[bytes]:
    """Return the fields `system` and `messages`."""
    system, turns = dialect.parted(conversation)
    pieces = []
    if blocks := [block for message in system for block in _system_blocks(message)]:
        alone = len(blocks) == 1 and len(blocks[0]) == 2
        pieces = [b'"system":%b,' % orjson.dumps(blocks[0]["text"] if alone else blocks)]
    return [*pieces, b'"messages":', *dialect.joined(_turn(message, images) for message in turns)]


def _system_blocks(message: Message) -> list[JsonDict]:
    text, mark = dialect.text_of_message(message), _mark_of(message)
    if not isinstance(message.content, tuple) or not any(part.marks for part in message.content):
        return [{"type": "text", "text": text, **mark}] if text else []
    parts = (part for part in message.content if isinstance(part, TextPart) and part.text)
    blocks = [{"type": "text", "text": part.text, **(part.marks or {})} for part in parts]
    return [*blocks[:-1], mark | blocks[-1]] if blocks else []


def _mark_of(message: Message) -> JsonDict:
    """Return the cache mark of a message. An assistant's parts become one text, which has the parts' last mark."""
    mark = (message.extra or {}).get("cache_control")
    if message.role == "assistant" and isinstance(message.content, tuple):
        mark = next((part.marks["cache_control"] for part in reversed(message.content) if part.marks), mark)
    return {"cache_control": mark} if mark else {}


def _turn(message: Message, images: Mapping[str, bytes]) -> list[bytes]:
    mark = _mark_of(message)
    if message.role == "tool":
        identity = orjson.dumps((message.extra or {}).get("tool_call_id", ""))
        start = b'{"role":"user","content":[{"type":"tool_result","tool_use_id":%b,"content":' % identity
        end = orjson.dumps(mark)[1:-1]
        return [start, *_content(message, images, {}), b",%b}]}" % end if end else b"}]}"]
    if message.role == "assistant":
        return _assistant(message, mark)
    return [b'{"role":"user","content":', *_content(message, images, mark), b"}"]


def _assistant(message: Message, mark: JsonDict) -> list[bytes]:
    thoughts = (message.extra or {}).get("thinking_blocks")
    blocks: list[JsonDict] = list(thoughts) if isinstance(thoughts, list) else []
    text = dialect.text_of_message(message)
    uses = [
        {"type": "tool_use", "id": id_, "name": name, "input": args} for id_, name, args, _ in dialect.calls_of(message)
    ]
    if not blocks and not uses and not mark:
        return [b'{"role":"assistant","content":%b}' % orjson.dumps(text)]
    blocks += [{"type": "text", "text": text}] if text else []
    blocks += uses
    if mark and blocks:
        blocks[-1] = {**blocks[-1], **mark}
    return [b'{"role":"assistant","content":%b}' % dialect.exact_json(blocks)]


def _content(message: Message, images: Mapping[str, bytes], mark: JsonDict) -> list[bytes]:
    content = message.content
    if not isinstance(content, tuple):
        if not mark:
            return [orjson.dumps(content or "")]
        content = (TextPart(content or ""),)
    parts = [part for part in content if not isinstance(part, TextPart) or part.text]
    blocks = [_block(part, images) for part in parts]
    if mark and blocks and not parts[-1].marks:
        blocks[-1][-1] = b"%b%b}" % (blocks[-1][-1][:-1], dialect.more_fields(mark))
    return dialect.joined(blocks)


def _block(part: Part, images: Mapping[str, bytes]) -> list[bytes]:
    if isinstance(part, TextPart):
        return [orjson.dumps({"type": "text", "text": part.text, **(part.marks or {})})]
    if part.kind == "audio":
        raise dialect.unsupported("sound", "Send its words, or choose a model that takes sound.")
    marks = dialect.more_fields(part.marks)
    kind_and_data = dialect.data_url(encoded := images[part.source])
    if kind_and_data is None:
        return [b'{"type":"image","source":{"type":"url","url":%b}%b}' % (encoded, marks)]
    block = b"document" if part.kind == "pdf" else b"image"
    start = b'{"type":"%b","source":{"type":"base64","media_type":"%b","data":"' % (block, kind_and_data[0])
    return [start, kind_and_data[1], b'"}%b}' % marks]


# Replies


def completion(payload: JsonDict, _: Mapping[str, str]) -> JsonDict | None:
    """Return a message as a chat completion."""
    blocks = payload.get("content")
    if payload.get("type") != "message" or not isinstance(blocks, list):
        return None
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[JsonDict] = []
    kept: list[JsonDict] = []
    others: list[JsonDict] = []
    annotations: list[JsonDict] = []
    for block in blocks:
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
                annotations += _annotations(block.get("citations"))
            case {"type": "thinking"}:
                thoughts.append(str(block.get("thinking") or ""))
                kept.append(block)
            case {"type": "redacted_thinking"}:
                kept.append(block)
            case {"type": "tool_use"}:
                calls.append(dialect.call(str(block.get("id") or ""), block.get("name"), block.get("input")))
            case {"type": str()}:
                others.append(block)
    details = payload.get("stop_details")
    message = {
        "content": "".join(texts),
        "reasoning_content": "".join(thoughts),
        "tool_calls": calls,
        "thinking_blocks": kept,
        "content_blocks": others,
        "annotations": annotations,
        "refusal": _said(details) if payload.get("stop_reason") == "refusal" else "",
    }
    finish = payload.get("stop_reason")
    tier = payload["usage"].get("service_tier") if isinstance(payload.get("usage"), dict) else None
    chat = dialect.chat_completion(
        payload, _READ, message, _FINISHES.get(str(finish), finish), _usage(payload.get("usage"))
    )
    return chat | ({"service_tier": tier} if tier else {})


def _annotations(cited: Any) -> Iterator[JsonDict]:
    """Yield the web pages among the citations of a text. Other citations refer to documents of the request."""
    for one in cited if isinstance(cited, list) else ():
        if isinstance(one, Mapping) and one.get("type") == "web_search_result_location":
            yield url_citation(one.get("url"), one.get("title"))


def _said(details: Any) -> str:
    if not isinstance(details, dict):
        return ""
    return str(details.get("explanation") or details.get("category") or "")


def _usage(usage: Any) -> JsonDict:
    """Convert a usage to the format of chat completions, and add the iterations that the usage's own counts omit."""
    if not isinstance(usage, dict):
        return {}
    billed = [usage, *filter(_is_left_out, dialect.listed(usage, "iterations"))]
    fresh, cached, written, completion = (_sum(billed, name) for name in (*_PROMPT, "output_tokens"))
    thinking = _sum([_object_in(one, "output_tokens_details") for one in billed], "thinking_tokens")
    counts = dialect.chat_usage(fresh + cached + written, completion, cached, written, thinking)
    kinds = [_object_in(one, "cache_creation") for one in billed]
    if any(dialect.count_of(kind.get(_AN_HOUR)) is not None for kind in kinds):
        counts["prompt_tokens_details"]["cache_write_1h_tokens"] = _sum(kinds, _AN_HOUR)
    searches = _sum([_object_in(one, "server_tool_use") for one in billed], "web_search_requests")
    return dialect.with_searches(counts, searches)


def _is_left_out(iteration: Any) -> bool:
    return isinstance(iteration, Mapping) and iteration.get("type") in _LEFT_OUT


def _object_in(usage: JsonObject, name: str) -> JsonObject:
    inner = usage.get(name)
    return inner if isinstance(inner, Mapping) else {}


def _sum(usages: Iterable[JsonObject], name: str) -> int:
    return sum(dialect.count_of(usage.get(name)) or 0 for usage in usages)


def assemble(events: Iterator[JsonDict]) -> JsonDict:
    """Return the message in a stream. If the stream reports an error, return the error with the usage so far."""
    message: JsonDict = {}
    blocks: dict[tuple[int, int], JsonDict] = {}
    pieces: dict[tuple[int, int], dict[str, list[str]]] = {}
    citations: dict[tuple[int, int], list[JsonDict]] = {}
    numbers: dict[int, int] = {}  # the number of blocks at each index, because some servers give all blocks the index 0
    ended = False
    for event in events:
        kind = event.get("type")
        if kind == "error" or event.get("error"):
            usage = {"usage": _usage(message["usage"])} if message.get("usage") else {}
            return {**event, **usage, **({"choices": [{}]} if blocks else {})}
        if kind == "message_start":
            if message.get("id") is None or message["id"] != event["message"].get("id"):
                # a gateway has repeated the request after a part of the answer
                for earlier in (blocks, pieces, citations, numbers):
                    earlier.clear()
            message = dict(event["message"])
        elif kind == "content_block_start":
            numbers[event["index"]] = numbers.get(event["index"], 0) + 1
            blocks[event["index"], numbers[event["index"]]] = dict(event["content_block"])
        elif kind == "content_block_delta":
            place = event["index"], numbers.setdefault(event["index"], 0)
            blocks.setdefault(place, {"type": str(event["delta"].get("type")).removesuffix("_delta")})
            if isinstance(cited := event["delta"].get("citation"), dict):
                if place not in citations:  # one list grows, because a copy for each event would take long
                    blocks[place]["citations"] = citations[place] = [*dialect.listed(blocks[place], "citations")]
                citations[place].append(cited)
            _add(pieces.setdefault(place, {}), event["delta"])
        elif kind == "message_delta":
            finish = later_finish(message.get("stop_reason"), event["delta"].get("stop_reason"))
            message |= {name: value for name, value in event["delta"].items() if value is not None}
            message["stop_reason"] = finish
            message["usage"] = _grown(message.get("usage") or {}, event.get("usage") or {})
        elif kind == "message_stop":
            ended = True
    if not message or (not ended and message.get("stop_reason") is None):
        raise CutOffError
    return {**message, "content": [_filled(blocks[place], pieces.get(place, {})) for place in sorted(blocks)]}


def _add(pieces: dict[str, list[str]], delta: JsonDict) -> None:
    for name, piece in delta.items():
        if name != "type" and isinstance(piece, str):
            pieces.setdefault(name, []).append(piece)
        elif name == "partial_json" and piece is not None:
            raise TypeError


def _filled(block: JsonDict, pieces: Mapping[str, list[str]]) -> JsonDict:
    """Return a block with its streamed pieces inserted."""
    for name, texts in pieces.items():
        if name != "partial_json":
            block[name] = continued(str(block.get(name) or ""), "".join(texts))
        elif block.get("type") == "tool_use":
            block["input"] = "".join(texts) or "{}"  # the JSON text, which `max_tokens` may have cut off
        else:
            block["input"] = orjson.loads("".join(texts) or "{}")
    return block


def _grown(usage: JsonObject, later: JsonObject) -> JsonDict:
    """Return the usage after a later event, whose zeros count only with a new, positive count of prompt tokens."""
    if any(later.get(name) and later[name] != usage.get(name) for name in _PROMPT):
        return {**usage, **{name: count for name, count in later.items() if count is not None}}
    return dialect.grown_usage(usage, later)


def delta_in(event: JsonDict) -> JsonDict:
    """Convert an event to a delta of a chat completion."""
    match event:
        case {"content_block": {"type": "tool_use"} as block}:
            begun = {"id": block.get("id"), "function": {"name": block.get("name")}}
            return {"tool_calls": [{"index": event["index"], **begun}]}
        case {"delta": {"partial_json": text}}:
            return {"tool_calls": [{"index": event["index"], "function": {"arguments": text}}]}
        case {"content_block": part}:
            texts = {"content": part.get("text"), "reasoning_content": part.get("thinking")}
            return {"start": {name: text for name, text in texts.items() if isinstance(text, str) and text}}
        case {"type": "content_block_delta", "delta": part}:
            return {"content": part.get("text"), "reasoning_content": part.get("thinking")}
    return {}
