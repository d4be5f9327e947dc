"""OpenAI's Responses API without state: the provider stores nothing, unless `store` is set.

Format: developers.openai.com/api/reference/resources/responses, and the types of the package openai 3.57.0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from promptmill.backends.openai import citations
from promptmill.backends.openai.chat_completion import CutOffError, read_finish, text_of
from promptmill.backends.openai.dialects import dialect
from promptmill.backends.openai.providers import ProviderProfile, translate
from promptmill.backends.openai.schema_forms import asked_of
from promptmill.core.request import SYSTEM_ROLES, Conversation, FileKind, FilePart, Message, Part, TextPart
from promptmill.core.values import JsonDict, JsonObject

NAME = "responses"
PATH = "/responses"
base, url, headers = dialect.in_v1, dialect.same_url, dialect.bearer
STREAMED: JsonObject = {"stream": True}
FILLED = frozenset({"input", "background"})
FILES: frozenset[FileKind] = frozenset({"pdf"})  # OpenAI takes no recordings, but other servers may
MARKS, MARKED = frozenset({"prompt_cache_breakpoint"}), frozenset({"user", *SYSTEM_ROLES})

# Parameters of chat completions that this API lacks.
_UNKNOWN = dialect.set_of(
    "seed stop presence_penalty frequency_penalty n logit_bias modalities audio prediction web_search_options "
    "functions function_call structured_outputs"
)
_LOGPROBS = "message.output_text.logprobs"
_BETWEEN_THOUGHTS = "\n\n"
_TEXT_PARTS = frozenset({"output_text", "text"})
"""The types of parts that hold the text of an answer. Some gateways use `text`, the type of chat completions."""
_COSTS = ("cost", "cost_in_usd_ticks", "is_byok")  # fields of Perplexity, OpenRouter and xAI
_READ = dialect.set_of(
    "output usage error status incomplete_details text tools tool_choice instructions input reasoning object"
)


# Requests


def parameters(
    profile: ProviderProfile, model: str, sampling: JsonObject, extra: JsonObject
) -> dialect.WrittenParameters:
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
    return dialect.WrittenParameters({"model": model, "store": False} | body, refused, words)


def _format(form: JsonObject) -> JsonObject:
    if form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "name": "answer", **form["json_schema"]}


def _tool(function: JsonObject) -> JsonDict:
    return {"type": "function", "parameters": None, "strict": False, **function}


def conversation(conversation: Conversation, images: Mapping[str, bytes]) -> list[bytes]:
    """Return the field `input`."""
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


def _part(part: Part, images: Mapping[str, bytes]) -> list[bytes]:
    marks = dialect.more_fields(part.marks)
    if isinstance(part, TextPart):
        return [b'{"type":"input_text","text":%b%b}' % (orjson.dumps(part.text), marks)]
    if part.kind == "audio":
        return [b'{"type":"input_audio","input_audio":', dialect.input_audio(images[part.source]), marks + b"}"]
    if isinstance(part, FilePart):
        start = b'{"type":"input_file","filename":%b,"file_data":' % dialect.file_name(part)
        return [start, images[part.source], marks + b"}"]
    detail = orjson.dumps(part.detail or "auto")
    start = b'{"type":"input_image","detail":%b,"image_url":' % detail
    return [start, images[part.source], marks + b"}"]


# Replies


def completion(payload: JsonDict, _: Mapping[str, str]) -> JsonDict | None:
    """Convert a response to a chat completion."""
    if not isinstance(payload.get("output"), list) or payload.get("error"):
        return None
    items = _distinct(payload["output"])
    texts: list[str] = []
    refusals: list[str] = []
    thoughts: list[str] = []
    calls: list[JsonDict] = []
    others: list[JsonDict] = []
    logprobs: list[Any] = []
    annotations: list[JsonDict] = []
    results: list[Any] = []
    answers = {*map(id, _answers(items))}
    for item in items:
        match item:
            case {"type": "message", "content": list(parts)} if id(item) not in answers:
                thoughts += [text_of(part) for part in _objects(parts) if part.get("type") in _TEXT_PARTS]
            case {"type": "message", "content": list(parts)}:
                for part in _objects(parts):  # gateways write null for an empty text
                    texts += [text_of(part)] if part.get("type") in _TEXT_PARTS else []
                    refusals += [part.get("refusal") or ""] if part.get("type") == "refusal" else []
                    logprobs += part.get("logprobs") or ()
                    annotations += [one for one in dialect.listed(part, "annotations") if isinstance(one, dict)]
            case {"type": "reasoning"}:
                parts = [*(item.get("summary") or ()), *(item.get("content") or ())]
                thoughts += [part["text"] for part in parts if isinstance(part.get("text"), str)]
            case {"type": "function_call"}:
                calls.append(
                    dialect.call(str(item.get("call_id") or ""), item.get("name"), item.get("arguments") or "{}")
                )
            case {"type": "search_results", "results": list(pages)}:  # in Perplexity's replies
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
    finish = _finish(payload, items, calls=bool(calls))
    choice = {"logprobs": {"content": logprobs}} if logprobs else {}
    usage = dialect.with_searches(_usage(payload.get("usage")), sum(map(_is_search, items)))
    chat = dialect.chat_completion(payload, _READ, message, finish, usage, **choice)
    return chat | ({"search_results": results} if results else {})


def _objects(parts: list[Any]) -> list[JsonDict]:
    """Return the parts of a message without those that gateways leave empty."""
    return [{"type": "output_text", "text": part} if isinstance(part, str) else part for part in parts if part]


def _annotation(one: JsonDict) -> JsonDict:
    is_page = one.get("type") == "url_citation"
    return citations.url_citation(one.get("url"), one.get("title")) if is_page else one


def text_in(items: list[Any]) -> str:
    """Return the text of the answer in the items of a response."""
    parts = [part for message in _answers(_distinct(items)) for part in dialect.listed(message, "content")]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") in _TEXT_PARTS]
    return "".join(text for text in texts if isinstance(text, str))


def _answers(items: list[JsonDict]) -> list[JsonDict]:
    """Return the messages with the answer. Other messages are the model's comments between its steps."""
    messages = [item for item in items if _is_message(item)]
    final = [message for message in messages if message.get("phase") == "final_answer"]
    return final or [message for message in messages if not _is_commentary(message)] or messages


def _distinct(items: list[Any]) -> list[JsonDict]:
    """Return the items of a response, each once. OpenAI and gateways repeat some items, sometimes with another id.

    A message is a repetition if an earlier message of its phase has the same text. A message whose text begins with the
    text of the phase's last message replaces that message. Any other item is a repetition if an earlier item has the
    same id and contradicts none of its fields.
    """
    distinct: list[JsonDict] = []
    texts: set[tuple[str, str]] = set()
    last: dict[str, tuple[int, str, str]] = {}
    places: dict[tuple[str, str], int] = {}
    for item in items:
        place = len(distinct)
        if not isinstance(item, dict):
            continue
        if _is_message(item):
            message = _with_parts_once(item)
            phase, (_, name), text = str(message.get("phase")), _identity(message), "".join(_texts_of(message))
            earlier, earlier_name, earlier_text = last.get(phase, (place, "", ""))
            is_shorter = bool(name) and name == earlier_name and earlier_text.startswith(text)
            if text.strip() and (is_shorter or (phase, text) in texts):
                continue
            if earlier_text.strip() and text.startswith(earlier_text):
                place = earlier
            texts.add((phase, text))
            last[phase] = place, name, text
            distinct[place : place + 1] = [message]
            continue
        key = _identity(item)
        earlier = places.get(key, place)
        if key[1] and earlier < place and _agree(distinct[earlier], item):
            distinct[earlier] |= {name: value for name, value in item.items() if value}
        else:
            places[key] = place
            distinct.append({**item})
    return distinct


def _agree(item: JsonObject, other: JsonObject) -> bool:
    """Return whether two items have equal values in all fields that both have."""
    both = item.keys() & other.keys() - {"status"}
    return all(item[name] == other[name] for name in both if item[name] and other[name])


def _with_parts_once(message: JsonDict) -> JsonDict:
    """Return a message. If it repeats its whole sequence of parts, keep one sequence. `content` may be a text."""
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "output_text", "text": content}]
    texts = _texts_of(message)
    if isinstance(content, list) and len(texts) == len(content) and "".join(texts).strip():
        lengths = (size for size in range(1, len(texts) // 2 + 1) if not len(texts) % size)
        size = next((size for size in lengths if texts[:size] * (len(texts) // size) == texts), len(texts))
        content = content[-size:]
    return message | {"type": "message", "content": content}


def _texts_of(item: JsonObject) -> list[str]:
    parts = [*dialect.listed(item, "summary"), *dialect.listed(item, "content")]
    texts = [part.get("text") or part.get("refusal") for part in parts if isinstance(part, dict)]
    return [text for text in texts if isinstance(text, str)]


def _length(items: list[JsonDict], kind: str) -> int:
    """Return the total length of the texts in all items of the type `kind`."""
    return sum(len(text) for item in items if item.get("type") == kind for text in _texts_of(item))


def searches_in(items: list[Any]) -> int:
    """Return the number of web searches among the items of a response. Opening a page does not count."""
    return sum(map(_is_search, _distinct(items)))


def _is_search(item: JsonObject) -> bool:
    match item:
        case {"type": "search_results"}:
            return True
        case {"type": "web_search_call", "action": {"type": str(action)}}:
            return action == "search"
        case {"type": "web_search_call"}:
            return True
    return False


def _finish(payload: JsonObject, items: list[JsonDict], *, calls: bool) -> str:
    """Return the finish reason. Some gateways report a truncated answer as completed, but its item as incomplete."""
    details = payload.get("incomplete_details")
    reason = str(details.get("reason") or "") if isinstance(details, dict) else ""
    status = payload.get("status") or "completed"
    if reason == "content_filter":
        return "content_filter"
    if reason == "max_messages" or read_finish(reason)[0] == "length":
        return "length"
    if status != "completed":
        return f"error: {reason or status}"
    if any(item.get("status") == "incomplete" for item in items):
        return "length"
    return "tool_calls" if calls else "stop"


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
    if details := inputs.get("cache_write_tokens_details"):
        counts["prompt_tokens_details"]["cache_write_tokens_details"] = details
    return counts | {name: usage[name] for name in _COSTS if name in usage}


def _is_message(item: JsonObject) -> bool:
    return item.get("type") == "message" or ("type" not in item and item.get("role") == "assistant")


def _is_commentary(item: JsonObject) -> bool:
    """Return whether an item is a comment of the model between its steps, not its answer."""
    return _is_message(item) and item.get("phase") == "commentary"


def assemble(events: Iterator[JsonDict]) -> JsonDict:
    """Return the response at the end of a stream, or the stream's error."""
    begun = False
    streamed = _StreamedItems()
    for event in events:
        kind = event.get("type")
        if kind in {"response.completed", "response.incomplete", "response.failed"}:
            response: JsonDict = event["response"]
            if kind != "response.completed":
                response = {**response, "status": kind.removeprefix("response.")}
            return {**response, "output": streamed.filled(response.get("output"))} if streamed.items else response
        if kind == "error" or event.get("error"):
            said = event if kind != "error" or event.get("error") else {"error": event}
            return {**said, **({"choices": [{}]} if begun else {})}
        begun = begun or str(kind).endswith(".delta")
        streamed.add(event)
    raise CutOffError


class _Item:
    """An item of a streamed response, with the pieces of its parts."""

    def __init__(self, index: int, fields: JsonDict) -> None:
        self.index, self.fields = index, fields
        self._parts: dict[tuple[str, int], JsonDict] = {}
        self._pieces: dict[tuple[str, int], list[str]] = {}
        self._ended: set[tuple[str, int]] = set()
        self.places: set[tuple[object, ...]] = set()
        """The keys by which events refer to the item, until it ends."""

    def has_ended(self, kind: str, event: JsonDict) -> bool:
        """Return whether the whole text of a part has arrived."""
        return self._key(kind, event) in self._ended

    def _key(self, kind: str, event: JsonDict) -> tuple[str, int]:
        return kind, event.get("content_index", event.get("summary_index")) or 0

    def add(self, kind: str, event: JsonDict, field: str, text: str) -> None:
        """Add the next piece of a part's text; if `field` is not `delta`, `text` is the part's whole text."""
        key = self._key(kind, event)
        part, pieces = self._parts.setdefault(key, {"type": kind}), self._pieces.setdefault(key, [])
        for name in ("logprobs", "annotations"):
            if added := dialect.listed(event, name):
                part[name] = part.get(name, []) if field == "delta" else []
                part[name] += added
        if field != "delta":
            pieces[:] = ["".join(pieces)]
            if key not in self._ended and len(text) > len(pieces[0]):
                pieces.clear()  # not all pieces arrived
            elif text in pieces[0]:
                text = ""
            self._ended.add(key)
        pieces.append(text)

    def annotate(self, event: JsonDict) -> None:
        """Add a citation to a part."""
        part = self._parts.setdefault(self._key("output_text", event), {"type": "output_text"})
        part.setdefault("annotations", []).append(event["annotation"])

    def filled(self, fields: JsonDict) -> JsonDict:
        """`fields` is the item in its last event. Return it, with missing texts filled in from the pieces."""
        texts = {key: "".join(self._pieces.get(key, ())) for key in sorted(self._parts, key=lambda key: key[1])}
        match fields.get("type"):
            case "function_call" if not fields.get("arguments"):
                return {**fields, "arguments": "".join(texts.values())}
            case "message" if not any(_texts_of(fields)):
                parts = [self._parts[key] | {_FIELDS.get(key[0], "text"): text} for key, text in texts.items()]
                return {**fields, "content": parts}
            case "reasoning" if not (fields.get("content") or fields.get("summary")):
                return {**fields, "content": [{"type": "reasoning_text", "text": text} for text in texts.values()]}
        return fields


class _StreamedItems:
    """Collects the items of a response from its stream's events: some gateways omit items or texts from the final
    `output`.

    An event names its item by `output_index` and `item_id`, but each may be wrong: LiteLLM gives several items one
    index, others omit the index, and Copilot gives an item another id in each event. So an event is added to the open
    item with the same index, type and id. If there is none, it is added to the last open item with the same index and
    type. If there is none either, the event begins a new item. An item is open until its end is reported.
    """

    def __init__(self) -> None:
        self.items: list[_Item] = []
        self._open: dict[tuple[object, ...], _Item] = {}
        """The open items by index, type and id. A key without an id leads to the last item with the index and type."""

    def add(self, event: JsonDict) -> None:
        match event:
            case {"type": "response.output_item.added", "item": dict(fields)}:
                if (event.get("output_index"), *_named(fields)) not in self._open:  # a server may repeat the event
                    self._begin(event.get("output_index"), fields)
            case {"type": "response.output_item.done", "item": dict(fields)}:
                item = self._item(event.get("output_index"), fields)
                item.fields = item.filled(fields)
                for place in item.places:
                    if self._open.get(place) is item:
                        del self._open[place]
            case {"type": "response.output_text.annotation.added", "annotation": dict()}:
                self._item_of(event, "message").annotate(event)
            case {"type": "response.content_part.done", "part": {"type": "output_text" | "refusal" as kind} as part}:
                if isinstance(text := part.get(_FIELDS.get(kind, "text")), str):
                    self._item_of(event, "message").add(kind, event | part, "text", text)
            case {"type": str(kind)} if kind in _TEXTS:
                item_type, part_type, field = _TEXTS[kind]
                if isinstance(text := event.get(field), str):
                    item = self._item_of(event, item_type)
                    if field == "delta" and item.has_ended(part_type, event):  # the server sends the item again
                        item = self._begin(event.get("output_index"), item.fields)
                    item.add(part_type, event, field, text)

    def _item_of(self, event: JsonDict, item_type: str) -> _Item:
        return self._item(event.get("output_index"), {"type": item_type, "id": event.get("item_id")})

    def _item(self, index: int | None, fields: JsonDict) -> _Item:
        """Return the item with this index, and with the type and id of `fields`."""
        kind, name = named = _named(fields)
        places = ((index, *named), (index, kind), (None, *named) if name else ())
        found = next((item for place in places if (item := self._open.get(place)) is not None), None)
        return self._begin(index, fields) if found is None else found

    def _begin(self, index: int | None, fields: JsonDict) -> _Item:
        last = self.items[-1].index if self.items else 0
        self.items.append(item := _Item(last if index is None else index, fields))
        kind, name = _named(fields)
        for at in (index, None):
            item.places |= {(at, kind), (at, kind, name)}
        self._open |= dict.fromkeys(item.places, item)
        return item

    def filled(self, output: Any) -> list[JsonDict]:
        """Return the items of `output` with missing texts filled in, and with missing items added."""
        streamed = sorted(self.items, key=lambda item: item.index)
        if not output:
            return [item.filled(item.fields) for item in streamed]
        matches = _matches(streamed, output)
        places = {id(item): place for place, item in matches.items()}
        items = [item.filled(item.fields) for item in streamed]
        whole = [matches[at].filled(fields) if at in matches else fields for at, fields in enumerate(output)]
        # if `output` has as much text of a type as the stream, no such item is added: a gateway may have joined items
        joined = {kind for kind in ("message", "reasoning") if _length(items, kind) <= _length(whole, kind)}
        lacking: dict[int, list[JsonDict]] = {}
        place = 0
        for item, fields in zip(streamed, items, strict=True):
            if id(item) in places:
                place = places[id(item)] + 1
            elif fields.get("type") not in joined:
                lacking.setdefault(place, []).append(fields)
        return [item for at in range(len(whole) + 1) for item in (*lacking.get(at, ()), *whole[at : at + 1])]


def _matches(streamed: list[_Item], output: list[JsonDict]) -> dict[int, _Item]:
    """Return the streamed items by their positions in `output`. Items whose ids do not match are matched by order."""
    of_id = {_identity(item.fields): item for item in streamed if _identity(item.fields)[1]}
    matches = {at: of_id.pop(_identity(fields)) for at, fields in enumerate(output) if _identity(fields) in of_id}
    matched = {*map(id, matches.values())}
    waiting: dict[object, deque[_Item]] = {}
    for item in streamed:
        if id(item) not in matched:
            waiting.setdefault(item.fields.get("type"), deque()).append(item)
    for at, fields in enumerate(output):
        if at not in matches and (of_type := waiting.get(fields.get("type"))):
            matches[at] = of_type.popleft()
    return matches


def _identity(item: JsonObject) -> tuple[str, str]:
    return str(item.get("type")), str(item.get("call_id") or item.get("id") or "")


def _named(item: JsonObject) -> tuple[object, object]:
    return item.get("type"), item.get("id") or ""


# For each type of event: the type of the item with the text, the type of the part with the text, and the text's field.
_TEXTS = {
    "response.output_text.delta": ("message", "output_text", "delta"),
    "response.output_text.done": ("message", "output_text", "text"),
    "response.refusal.delta": ("message", "refusal", "delta"),
    "response.refusal.done": ("message", "refusal", "refusal"),
    "response.reasoning_summary_text.delta": ("reasoning", "summary_text", "delta"),
    "response.reasoning_summary_text.done": ("reasoning", "summary_text", "text"),
    "response.reasoning_text.delta": ("reasoning", "reasoning_text", "delta"),
    "response.reasoning_text.done": ("reasoning", "reasoning_text", "text"),
    "response.function_call_arguments.delta": ("function_call", "arguments", "delta"),
    "response.function_call_arguments.done": ("function_call", "arguments", "arguments"),
}
_FIELDS = {"refusal": "refusal"}
"""The fields with the texts of parts, by the types of parts. For types that are not listed, the field is `text`."""


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
            return {"hidden": event["output_index"]}  # only the stream's end shows whether this item is the answer
        case {"type": "response.output_item.added", "item": {"type": "message"}} | {
            "type": "response.output_text.done"
        }:
            return {"again": "content"}  # the next message may repeat the text
        case {"type": "response.output_item.added", "item": {"type": "function_call"} as item}:
            begun = {"id": item.get("call_id"), "function": {"name": item.get("name")}}
            return {"tool_calls": [{"index": event["output_index"], **begun}]}
        case {"type": "response.function_call_arguments.delta", "delta": text}:
            return {"tool_calls": [{"index": event["output_index"], "function": {"arguments": text}}]}
    return {}
