"""Google's Gemini API, `generateContent`.

Format: ai.google.dev/api/generate-content, and the types of the package google-genai 3.6.1. The URL names the model.
"""

from __future__ import annotations

import itertools
import mimetypes
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import orjson

from promptmill.answers.response_format import schema_of
from promptmill.backends.openai.chat_completion import CutOffError, loss_of
from promptmill.backends.openai.citations import url_citation
from promptmill.backends.openai.dialects import dialect
from promptmill.backends.openai.providers import ProviderProfile, Thinking
from promptmill.backends.openai.schema_forms import google_form, in_words
from promptmill.core.request import Conversation, FileKind, Message, Part, TextPart
from promptmill.core.values import JsonDict, JsonObject

NAME = "gemini"
PATH = "/models"
STREAMED: JsonObject = {}
FILLED = frozenset({"contents", "systemInstruction", "system_instruction"})
FILES: frozenset[FileKind] = frozenset({"pdf", "audio"})
MARKS: frozenset[str] = frozenset()
MARKED: frozenset[str] = frozenset()
OPENAI_LAYER = "/openai"
"""The path of the provider's chat completions, below the base URL."""

_CONFIG = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "max_tokens": "maxOutputTokens",
    "max_completion_tokens": "maxOutputTokens",
    "stop": "stopSequences",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "thinkingConfig": "thinkingConfig",
    "responseModalities": "responseModalities",
    "mediaResolution": "mediaResolution",
}
"""The field of `generationConfig` for each parameter."""
_UNKNOWN = dialect.set_of(
    "min_p repetition_penalty n logit_bias modalities audio prediction prompt_cache_key prompt_cache_retention "
    "safety_identifier verbosity web_search_options functions function_call chat_template_kwargs user metadata "
    "parallel_tool_calls structured_outputs"
)
# ai.google.dev/gemini-api/docs/thinking; budgets by effort: ai.google.dev/gemini-api/docs/openai
_SERIES = re.compile(r"gemini-(\d+)(?:\.(\d+))?")
_BUDGETS = {"minimal": 1024, "low": 1024, "medium": 8192, "high": 24_576}
_LEVELS = {"max": "HIGH"}

_FILTERED = dialect.set_of(
    "SAFETY RECITATION LANGUAGE BLOCKLIST PROHIBITED_CONTENT SPII IMAGE_SAFETY IMAGE_PROHIBITED_CONTENT "
    "IMAGE_RECITATION MODEL_ARMOR ESCALATION"
)
_BROKEN = dialect.set_of(
    "FINISH_REASON_UNSPECIFIED OTHER MALFORMED_FUNCTION_CALL MALFORMED_RESPONSE UNEXPECTED_TOOL_CALL "
    "TOO_MANY_TOOL_CALLS MISSING_THOUGHT_SIGNATURE IMAGE_OTHER NO_IMAGE"
)
_CUT = frozenset({"MAX_TOKENS", "CONTINUATION"})
_SIGNS = frozenset({"candidates", "promptFeedback", "usageMetadata"})
_READ = frozenset({"candidates", "usageMetadata", "responseId", "modelVersion"})


def base(base: str) -> str:
    """Return the path of the API's base URL, which ends with the version."""
    return dialect.versioned(base.removesuffix(OPENAI_LAYER), "v1beta")


def url(url: str, model: str, *, stream: bool) -> str:
    """Return the URL of the model's method."""
    parts = urlsplit(url)
    name = quote(model.removeprefix("models/"), safe="/-._~:@")
    tuned = "/" in name  # such as tunedModels/NAME
    path = f"{parts.path.removesuffix(PATH) if tuned else parts.path}/{name}"
    method = "streamGenerateContent" if stream else "generateContent"
    query = "&".join(filter(None, (parts.query, "alt=sse" if stream else "")))
    return urlunsplit(parts._replace(path=f"{path}:{method}", query=query))


def headers(key: str) -> dict[str, str]:
    """Return the header for the key."""
    return {"x-goog-api-key": key} if key else {}


# Requests


def parameters(
    profile: ProviderProfile, model: str, sampling: JsonObject, extra: JsonObject
) -> dialect.WrittenParameters:
    """Return the parameters in the format of this API."""
    given = {**sampling, **extra}
    body = {name: value for name, value in given.items() if value is not None and name not in {"model", "store"}}
    refused = dialect.dropped(body, _UNKNOWN)
    config: JsonDict = {_CONFIG[name]: body.pop(name) for name in [*body] if name in _CONFIG}
    if config.get("topK", 1) <= 0:
        del config["topK"]
    if isinstance(config.get("stopSequences"), str):
        config["stopSequences"] = [config["stopSequences"]]
    if type(seed := config.get("seed")) is int:
        config["seed"] = seed % 2**31  # the API's seed has 32 bits
    if body.pop("logprobs", None):
        config["responseLogprobs"] = True
        if top := body.pop("top_logprobs", 0):
            config["logprobs"] = top
    body.pop("top_logprobs", None)
    thinking, more = _thinking(body, profile.thinking, model)
    refused += more
    if thinking:
        config["thinkingConfig"] = {**thinking, **(config.get("thinkingConfig") or {})}
    words = _format(body, config)
    _use_tools(body)
    if "service_tier" in body:
        body.setdefault("serviceTier", body.pop("service_tier"))
    config |= body.pop("generationConfig", None) or {}
    return dialect.WrittenParameters(body | ({"generationConfig": config} if config else {}), refused, words)


def _thinking(body: JsonDict, switch: Thinking, model: str) -> tuple[JsonDict, list[str]]:
    """Convert `enable_thinking` and `reasoning_effort` to `thinkingConfig`. Return also the unsupported parameters."""
    wanted, effort = body.pop("enable_thinking", None), body.pop("reasoning_effort", None)
    if effort == "none":
        wanted, effort = False, None
    if wanted is None and effort is None:
        return {}, []
    match = _SERIES.search(model)
    series = (int(match[1]), int(match[2] or 0)) if match else (3, 0) if model.startswith("gemini") else (0, 0)
    if series < (2, 5):
        return {}, [] if wanted is False else ["enable_thinking" if wanted else "reasoning_effort"]
    if wanted is False:
        return ({}, ["enable_thinking"]) if switch.is_fixed(model) else ({"thinkingBudget": 0}, [])
    thinking: JsonDict = {"includeThoughts": True} if wanted else {}
    if series >= (3, 0):
        if effort is not None:
            thinking["thinkingLevel"] = _LEVELS.get(str(effort), str(effort).upper())
    else:
        thinking["thinkingBudget"] = _BUDGETS.get(str(effort), _BUDGETS["high"]) if effort is not None else -1
    return thinking, []


def _format(body: JsonDict, config: JsonDict) -> str:
    """Convert `response_format` to a format that the provider enforces, or return instructions for the prompt."""
    wanted = body.pop("response_format", None)
    schema = schema_of(wanted) if isinstance(wanted, Mapping) else None
    if wanted is None or schema is None:
        return ""
    config.setdefault("responseMimeType", "application/json")
    if wanted["type"] == "json_object":
        return ""
    if (form := google_form(schema)) is None:
        return in_words(wanted)
    config.setdefault("responseJsonSchema", form)
    return ""


def _use_tools(body: JsonDict) -> None:
    if "tools" in body:
        tools = list(dialect.functions_in(body["tools"]))
        functions = [_function(tool) for tool, is_function in tools if is_function]
        others = [tool for tool, is_function in tools if not is_function]
        body["tools"] = [*([{"functionDeclarations": functions}] if functions else []), *others]
    choice = body.pop("tool_choice", None)
    if isinstance(choice, str):
        mode: JsonDict = {"mode": {"required": "ANY"}.get(choice, choice.upper())}
    elif (name := dialect.named_function(choice)) is not None:
        mode = {"mode": "ANY", "allowedFunctionNames": [name]}
    else:
        return
    body.setdefault("toolConfig", {"functionCallingConfig": mode})


def _function(function: JsonObject) -> JsonDict:
    declaration = {"name": function.get("name")}
    if function.get("description"):
        declaration["description"] = function["description"]
    if function.get("parameters"):
        declaration["parametersJsonSchema"] = function["parameters"]
    return declaration


def conversation(conversation: Conversation, images: Mapping[str, bytes]) -> list[bytes]:
    """Return the fields `systemInstruction` and `contents`."""
    system, turns = dialect.parted(conversation)
    pieces = []
    if system:
        parts = [{"text": text} for message in system if (text := dialect.text_of_message(message))]
        pieces = [b'"systemInstruction":%b,' % orjson.dumps({"parts": parts})]
    names: dict[str, str] = {}  # maps the id of each earlier call to the function's name; a later call may reuse an id
    spoken = []
    for message in _in_order_of_calls(turns):
        names |= {identity: name for identity, name, *_ in dialect.calls_of(message)}
        spoken.append(("model" if message.role == "assistant" else "user", _parts(message, images, names)))
    contents = [  # adjacent turns of a role are joined, because all results of parallel calls must be in one turn
        [b'{"role":"%b","parts":' % role.encode(), *dialect.joined(part for _, parts in same for part in parts), b"}"]
        for role, same in itertools.groupby(spoken, key=lambda one: one[0])
    ]
    return [*pieces, b'"contents":', *dialect.joined(contents)]


def _in_order_of_calls(turns: Iterable[Message]) -> Iterator[Message]:
    """Yield the turns, with the results of parallel calls in the order of the calls, because results carry no ids."""
    places: dict[str, int] = {}
    for are_results, group in itertools.groupby(turns, key=lambda message: message.role == "tool"):
        same = [*group]
        if are_results:
            same.sort(key=lambda result: places.get((result.extra or {}).get("tool_call_id", ""), len(places)))
        else:
            places = {identity: at for at, (identity, *_) in enumerate(dialect.calls_of(same[-1]))}
        yield from same


def _parts(message: Message, images: Mapping[str, bytes], names: Mapping[str, str]) -> list[list[bytes]]:
    if message.role == "tool":
        extra = message.extra or {}
        name = extra.get("name") or names.get(extra.get("tool_call_id", ""), "function")
        text = dialect.text_of_message(message)
        output = dialect.object_in(text) if text.lstrip()[:1] == "{" else {"output": text}
        return [[dialect.exact_json({"functionResponse": {"name": name, "response": output}})]]
    calls = [*dialect.calls_of(message)]
    parts = []
    if isinstance(message.content, str) and (message.content or not calls):
        parts = [[b'{"text":%b}' % orjson.dumps(message.content)]]
    elif isinstance(message.content, tuple):
        parts = [_part(part, images) for part in message.content if not isinstance(part, TextPart) or part.text]
    for _, name, arguments, whole_call in calls:
        part: JsonDict = {"functionCall": {"name": name, "args": arguments}}
        if signature := _signature(whole_call):
            part["thoughtSignature"] = signature
        parts.append([dialect.exact_json(part)])
    return parts


def _signature(whole_call: JsonObject) -> Any:
    """Return the signature of a tool call's thought, from the field of Google's chat completions."""
    match whole_call:
        case {"extra_content": {"google": {"thought_signature": signature}}}:
            return signature
    return None


def _part(part: Part, images: Mapping[str, bytes]) -> list[bytes]:
    if isinstance(part, TextPart):
        return [b'{"text":%b}' % orjson.dumps(part.text)]
    kind_and_data = dialect.data_url(encoded := images[part.source])
    if kind_and_data is None:
        kind = mimetypes.guess_type(urlsplit(part.source).path)[0] or "image/jpeg"
        return [b'{"fileData":{"mimeType":%b,"fileUri":%b}}' % (orjson.dumps(kind), encoded)]
    return [b'{"inlineData":{"mimeType":"%b","data":"' % kind_and_data[0], kind_and_data[1], b'"}}']


# Replies


def completion(payload: JsonDict, headers: Mapping[str, str]) -> JsonDict | None:
    """Convert a response to a chat completion."""
    if _SIGNS.isdisjoint(payload) or payload.get("error"):
        return None
    candidates = payload.get("candidates")
    candidate = candidates[0] if isinstance(candidates, list) and candidates else {}
    usage = dialect.with_searches(_usage(payload.get("usageMetadata")), _searches(payload, candidate))
    feedback = payload.get("promptFeedback")
    if not candidate and isinstance(feedback, dict) and feedback.get("blockReason"):
        finish = f"content_filter: {feedback['blockReason']}"
        said = feedback.get("blockReasonMessage") or feedback["blockReason"]
        chat = dialect.chat_completion(payload, _READ, {"refusal": said}, finish, usage)
    elif not candidate:
        chat = dialect.chat_completion(payload, _READ, {}, None, usage) | {"choices": []}
    else:
        chat = _answer(payload, candidate, usage)
    if tier := _tier(payload, headers):
        chat["service_tier"] = tier
    names = {"responseId": "id", "modelVersion": "model"}
    return chat | {new: payload[old] for old, new in names.items() if old in payload}


def _answer(payload: JsonDict, candidate: JsonDict, usage: JsonDict) -> JsonDict:
    content = candidate.get("content") or {}
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[JsonDict] = []
    others: list[Any] = []
    for part in content.get("parts") or ():
        match part:
            case {"functionCall": {"name": name, **rest}}:
                signature = part.get("thoughtSignature")
                more = {"extra_content": {"google": {"thought_signature": signature}}} if signature else {}
                calls.append(dialect.call(str(rest.get("id") or f"call_{len(calls)}"), name, rest.get("args"), **more))
            case {"text": str(text)}:
                (thoughts if part.get("thought") is True else texts).append(text)
            case _:
                others.append(part)
    reason = str(candidate.get("finishReason") or "")
    message = {
        "content": "".join(texts),
        "reasoning_content": "".join(thoughts),
        "tool_calls": calls,
        "parts": others,
        "annotations": _annotations(candidate.get("groundingMetadata")),
        "refusal": candidate.get("finishMessage") or reason if reason in _FILTERED else "",
    }
    known = {"content", "finishReason", "index", "logprobsResult"}
    choice = {name: value for name, value in candidate.items() if name not in known}
    if probabilities := _logprobs(candidate.get("logprobsResult")):
        choice["logprobs"] = {"content": probabilities}
    finish = _finish(reason, calls=bool(calls))
    if finish == "stop" and not content.get("parts"):
        finish = None  # None counts as a failure, because another attempt may succeed
    return dialect.chat_completion(payload, _READ, message, finish, usage, **choice)


def _annotations(grounding: Any) -> list[JsonDict]:
    """Return citations of the web pages that support a part of the text, in order of the text. If none supports a part,
    return citations of all pages. Values of other types are ignored."""
    if not isinstance(grounding, dict):
        return []
    chunks = dialect.listed(grounding, "groundingChunks")
    supports = [one for one in dialect.listed(grounding, "groundingSupports") if isinstance(one, dict)]
    given = (at for one in sorted(supports, key=_start) for at in dialect.listed(one, "groundingChunkIndices"))
    cited = [at for at in map(dialect.count_of, given) if at is not None]
    found = [chunks[at] for at in cited or range(len(chunks)) if at < len(chunks)]
    pages = [chunk.get("web") for chunk in found if isinstance(chunk, dict)]
    return [url_citation(page.get("uri"), page.get("title")) for page in pages if isinstance(page, dict)]


def _start(support: JsonObject) -> int:
    """Return the position at which the supported text begins."""
    segment = support.get("segment")
    return dialect.count_of(segment.get("startIndex")) or 0 if isinstance(segment, dict) else 0


def _searches(payload: JsonObject, candidate: JsonObject) -> int:
    """Return the number of billed searches: one for each request before Gemini 3, one for each query since then."""
    queries = len(dialect.listed(candidate.get("groundingMetadata"), "webSearchQueries"))
    match = _SERIES.search(str(payload.get("modelVersion")))
    return min(queries, 1) if match is not None and int(match[1]) < 3 else queries


def _finish(reason: str, *, calls: bool) -> str | None:
    if reason == "STOP":
        return "tool_calls" if calls else "stop"
    if reason in _CUT:
        return "length"
    if reason in _FILTERED:
        return f"content_filter: {reason}"
    return f"error: {reason}" if reason in _BROKEN else reason or None


def _loss_of(reason: object) -> int:
    return loss_of(_finish(str(reason or ""), calls=False))


def _usage(usage: Any) -> JsonDict:
    if not isinstance(usage, dict):
        return {}
    prompt, tools, answer, thoughts = (
        dialect.count_of(usage.get(name)) or 0
        for name in ("promptTokenCount", "toolUsePromptTokenCount", "candidatesTokenCount", "thoughtsTokenCount")
    )
    counts = dialect.chat_usage(prompt + tools, answer + thoughts, usage.get("cachedContentTokenCount"), 0, thoughts)
    details = [part for part in dialect.listed(usage, "promptTokensDetails") if isinstance(part, Mapping)]
    audio = [part.get("tokenCount") for part in details if part.get("modality") == "AUDIO"]
    counts["prompt_tokens_details"]["audio_tokens"] = sum(dialect.count_of(count) or 0 for count in audio)
    return counts


def _tier(payload: JsonObject, headers: Mapping[str, str]) -> str:
    usage = payload.get("usageMetadata")
    tier = headers.get("x-gemini-service-tier") or (usage.get("serviceTier") if isinstance(usage, dict) else None)
    return tier.lower() if isinstance(tier, str) else ""


def _logprobs(result: Any) -> list[JsonDict]:
    """Return the log probabilities in the format of chat completions."""
    if not isinstance(result, dict):
        return []
    chosen = [one for one in result.get("chosenCandidates") or () if isinstance(one, dict)]
    tops = [(step or {}).get("candidates") or () for step in result.get("topCandidates") or ()]
    return [
        {**_probability(one), "top_logprobs": [_probability(other) for other in top]}
        for one, top in itertools.zip_longest(chosen, tops[: len(chosen)], fillvalue=())
    ]


def _probability(one: Any) -> JsonDict:
    token = str(one.get("token") or "")
    return {"token": token, "logprob": one.get("logProbability", 0.0), "bytes": [*token.encode("utf-8", "replace")]}


def assemble(events: Iterator[JsonDict]) -> JsonDict:
    """Return the response in a stream. If the stream reports an error, return the error with the usage so far."""
    whole: JsonDict = {}
    candidate: JsonDict = {}
    parts: list[Any] = []
    grounding = _Grounding()
    before: list[object] = [None, None]  # the ids of the last two events
    for event in events:
        if parts and before[0] and before[0] == before[1] != event.get("responseId", before[1]):
            candidate, parts, grounding = {}, [], _Grounding()  # a gateway has repeated the request after a part
        before = [before[1], event.get("responseId")]
        if event.get("error"):
            usage = {"usage": _usage(whole["usageMetadata"])} if whole.get("usageMetadata") else {}
            return {**event, **usage, **({"choices": [{}]} if parts else {})}
        # a later event may omit counts of an earlier event
        counts = {**(whole.get("usageMetadata") or {}), **(event.get("usageMetadata") or {})}
        whole |= {name: value for name, value in event.items() if name != "candidates"}
        whole |= {"usageMetadata": counts} if counts else {}
        for event_candidate in event.get("candidates") or ():
            if event_candidate.get("index", 0) == 0:
                parts += (event_candidate.get("content") or {}).get("parts") or ()
                grounding.add(event_candidate.get("groundingMetadata"))
                known = candidate.get("finishReason")
                candidate |= {name: value for name, value in event_candidate.items() if value and name != "content"}
                if _loss_of(known) > _loss_of(candidate.get("finishReason")):
                    candidate["finishReason"] = known
    blocked = (whole.get("promptFeedback") or {}).get("blockReason")
    if not candidate.get("finishReason") and not blocked:
        raise CutOffError
    if grounding.fields:
        candidate["groundingMetadata"] = grounding.fields
    return {**whole, "candidates": [{**candidate, "content": {"parts": parts}}] if candidate or parts else []}


class _Grounding:
    """Collects the pages and queries in a stream's events. An event may omit fields. It may repeat a list with further
    elements, or have only the further elements."""

    def __init__(self) -> None:
        self.fields: JsonDict = {}
        self._lists: dict[str, tuple[list[Any], set[str]]] = {}

    def add(self, metadata: Any) -> None:
        """Add the fields of an event."""
        for name, value in metadata.items() if isinstance(metadata, dict) else ():
            if not isinstance(value, list):
                self.fields |= {name: value} if value else {}
                continue
            whole, known = self._lists.setdefault(name, ([], set()))
            self.fields[name] = whole
            is_repeated = value[: len(whole)] == whole
            later = [(one, str(one)) for one in value[len(whole) if is_repeated else 0 :]]
            whole += [one for one, text in later if is_repeated or text not in known]
            known.update(text for _, text in later)


def delta_in(event: JsonDict) -> JsonDict:
    """Convert an event to a delta without tool calls, because a call arrives complete at the end of the stream."""
    texts = {"content": "", "reasoning_content": ""}
    for part in event["candidates"][0]["content"]["parts"]:
        texts["reasoning_content" if part.get("thought") is True else "content"] += part.get("text", "")
    return {name: text for name, text in texts.items() if text}
