"""Recorded forms of answers with a web search, whole and as events of a stream, of five APIs.

Responses    openai 3.57.0, types/responses: `web_search_call`, annotations of `output_text`
chat         openai 3.57.0, types/chat: annotations of a message; openrouter.ai/docs: `server_tool_use`, `cost`
Messages     anthropic 2.13.0, types: `server_tool_use`, `web_search_tool_result`, `citations_delta`
Gemini       google-genai 3.6.1, types: `GroundingMetadata`
Perplexity   perplexityai, types: `search_results`, `usage.cost`; docs.x.ai/developers/cost-tracking: xAI's
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from replies import raw, sse
from upstream import Exchange, Reply

Body = dict[str, Any]
FIRST, SECOND = "https://example.org/metro", "https://example.com/rome?day=2"
SOURCES = [{"url": FIRST, "title": "Line 15"}, {"url": SECOND, "title": "Rome today"}]
CLEAN = "Line 15 opens on Friday. The Colosseum is closed."
TOKENS = {"prompt": 1000, "answer": 100}


def _annotation(url: str, title: str, **place: int) -> Body:
    return {"type": "url_citation", "url": url, "title": title, "start_index": 0, "end_index": 5, **place}


def responses(**changes: Any) -> Body:
    """Return a reply of OpenAI's Responses API: two searches, a page that was opened, marks that were left."""
    text = "Line 15 opens on Friday. \ue200cite\ue202turn0search0\ue201 The Colosseum is closed. citeturn1view0"
    annotations = [
        _annotation(f"{FIRST}?utm_source=openai", "Line 15"),
        _annotation(f"{SECOND}&utm_source=openai", "Rome today"),
        _annotation(f"{FIRST}?utm_source=openai", "Line 15"),
    ]
    call = {"type": "web_search_call", "status": "completed"}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_700_000_000,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": "gpt-5-mini",
        "output": [
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {
                **call,
                "id": "ws_1",
                "action": {"type": "search", "query": "metro line 15", "queries": ["metro line 15"]},
            },
            {**call, "id": "ws_2", "action": {"type": "open_page", "url": FIRST}},
            {**call, "id": "ws_3", "action": {"type": "search", "query": "colosseum closed"}},
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": text, "annotations": annotations}],
            },
        ],
        "usage": {
            "input_tokens": TOKENS["prompt"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": TOKENS["answer"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": sum(TOKENS.values()),
        },
        **changes,
    }


def responses_events(whole: Body) -> list[Body]:
    """Return the events of a reply of the Responses API."""
    message = whole["output"][-1]
    at, (part,) = len(whole["output"]) - 1, message["content"]
    piece = {"item_id": "msg_1", "output_index": at, "content_index": 0}
    done = [
        {"type": "response.output_item.done", "output_index": n, "item": item} for n, item in enumerate(whole["output"])
    ]
    return [
        {"type": "response.created", "response": {**whole, "status": "in_progress", "output": []}},
        *done[:-1],
        {"type": "response.output_item.added", "output_index": at, "item": {**message, "content": []}},
        *({"type": "response.output_text.delta", **piece, "delta": part["text"][n : n + 9]} for n in range(0, 120, 9)),
        *({"type": "response.output_text.annotation.added", **piece, "annotation": one} for one in part["annotations"]),
        done[-1],
        {"type": "response.completed", "response": whole},
    ]


def xai() -> Body:
    """Return a reply of xAI's Responses API: its citations have numbers as titles, and it states its cost."""
    whole = responses(model="grok-4.5")
    part = whole["output"][-1]["content"][0]
    part["text"] = f"Line 15 opens on Friday.[[1]]({FIRST}) The Colosseum is closed.[[2]]({SECOND})"
    part["annotations"] = [_annotation(FIRST, "1"), _annotation(SECOND, "2")]
    whole["citations"] = ["https://example.net/read-only", FIRST, SECOND]
    whole["usage"] |= {
        "num_server_side_tools_used": 2,
        "server_side_tool_usage_details": {"web_search_calls": 2, "x_search_calls": 0},
        "cost_in_usd_ticks": 378_000_000,
    }
    return whole


def perplexity() -> Body:
    """Return a reply of Perplexity's Agent API: numbers in the text refer to its results, of which one comes twice."""
    whole = responses(model="perplexity/sonar")
    results = [
        {"id": 1, "url": FIRST, "title": "Line 15", "snippet": "…", "source": "web"},
        {"id": 2, "url": FIRST, "title": "Line 15", "snippet": "…", "source": "web"},
        {"id": 3, "url": SECOND, "title": "Rome today", "snippet": "…", "source": "web"},
    ]
    text = "Line 15 opens on Friday[1][2]. The Colosseum is closed[3]."
    message = {**whole["output"][-1], "content": [{"type": "output_text", "text": text, "annotations": []}]}
    whole["output"] = [{"type": "search_results", "queries": ["metro", "rome"], "results": results}, message]
    whole["usage"]["cost"] = {
        "currency": "USD",
        "input_cost": 0.001,
        "output_cost": 0.0001,
        "tool_calls_cost": 0.0025,
        "total_cost": 0.0036,
    }
    whole["usage"]["tool_calls_details"] = {"search_web": {"invocation": 1}}
    return whole


def chat(model: str = "gpt-4o-search-preview-2025-03-11", **usage: Any) -> Body:
    """Return a chat completion of a model that searches; it has no count of searches unless `usage` has one."""
    text = f"Line 15 opens on Friday ([example.org]({FIRST}?utm_source=openai)). The Colosseum is closed【4:0†source】."
    pages = (f"{FIRST}?utm_source=openai", "Line 15"), (f"{SECOND}&utm_source=openai", "Rome today")
    annotations = [
        {"type": "url_citation", "url_citation": {"url": url, "title": title, "start_index": 0, "end_index": 5}}
        for url, title in pages
    ]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None, "annotations": annotations},
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": TOKENS["prompt"],
            "completion_tokens": TOKENS["answer"],
            "total_tokens": sum(TOKENS.values()),
            **usage,
        },
    }


CLEAN_CHAT = f"Line 15 opens on Friday ([example.org]({FIRST})). The Colosseum is closed."


def chat_events(whole: Body) -> list[Body]:
    """Return the events of a chat completion; the annotations come with the last piece."""
    common = {name: whole[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    message = whole["choices"][0]["message"]
    deltas: list[Body] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": message["content"][n : n + 9]} for n in range(0, len(message["content"]), 9)]
    deltas += [{"annotations": message["annotations"]}]
    choices: list[Body] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    return [*({**common, "choices": [one]} for one in choices), {**common, "choices": [], "usage": whole["usage"]}]


def anthropic() -> Body:
    """Return a message of Claude: words before the search, two searches, texts with and without citations."""

    def cited(url: str, title: str) -> Body:
        place = {"cited_text": "…", "encrypted_index": "Eo8B"}
        return {"type": "web_search_result_location", "url": url, "title": title, **place}

    result: Body = {"type": "web_search_result", "encrypted_content": "EqgB", "page_age": None}
    use: Body = {"type": "server_tool_use", "name": "web_search"}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-6",
        "content": [
            {**use, "id": "srvtoolu_1", "input": {"query": "metro line 15"}},
            {
                "type": "web_search_tool_result",
                "tool_use_id": "srvtoolu_1",
                "content": [{**result, "url": FIRST, "title": "Line 15"}, {**result, "url": "https://example.net"}],
            },
            {"type": "text", "text": "Line 15 opens on Friday.", "citations": [cited(FIRST, "Line 15")]},
            {"type": "text", "text": " "},
            {
                "type": "text",
                "text": "The Colosseum is closed.",
                "citations": [cited(SECOND, "Rome today"), cited(FIRST, "Line 15")],
            },
        ],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": TOKENS["prompt"],
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": TOKENS["answer"],
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
        },
    }


def anthropic_events(whole: Body) -> list[Body]:
    """Return the events of a message."""
    usage = {**whole["usage"], "output_tokens": 1, "server_tool_use": {"web_search_requests": 0}}
    events: list[Body] = [
        {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None, "usage": usage}}
    ]
    for index, block in enumerate(whole["content"]):
        begun, deltas = block, list[Body]()
        if block["type"] == "text":
            begun = {"type": "text", "text": "", "citations": []}
            deltas = [{"type": "citations_delta", "citation": one} for one in block.get("citations", ())]
            deltas += [
                {"type": "text_delta", "text": block["text"][n : n + 9]} for n in range(0, len(block["text"]), 9)
            ]
        elif block["type"] == "server_tool_use":
            begun = {**block, "input": {}}
            deltas = [{"type": "input_json_delta", "partial_json": orjson.dumps(block["input"]).decode()}]
        events.append({"type": "content_block_start", "index": index, "content_block": begun})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    done = {"stop_reason": "end_turn", "stop_sequence": None}
    counts = {name: whole["usage"][name] for name in ("output_tokens", "server_tool_use")}
    return [*events, {"type": "message_delta", "delta": done, "usage": counts}, {"type": "message_stop"}]


def gemini(model: str = "gemini-3-flash") -> Body:
    """Return a reply of Gemini: three queries, three pages, of which two support parts of the text."""
    metadata = {
        "webSearchQueries": ["metro line 15", "colosseum today", "rome news"],
        "searchEntryPoint": {"renderedContent": "<div></div>"},
        "groundingChunks": [
            {"web": {"uri": SECOND, "title": "Rome today"}},
            {"web": {"uri": "https://example.net/unused", "title": "example.net"}},
            {"web": {"uri": FIRST, "title": "Line 15"}},
        ],
        "groundingSupports": [
            {"segment": {"startIndex": 25, "endIndex": 49, "text": CLEAN[25:]}, "groundingChunkIndices": [0, 2]},
            {"segment": {"endIndex": 24, "text": CLEAN[:24]}, "groundingChunkIndices": [2]},
        ],
    }
    content = {"role": "model", "parts": [{"text": CLEAN}]}
    return {
        "candidates": [{"content": content, "finishReason": "STOP", "index": 0, "groundingMetadata": metadata}],
        "usageMetadata": {
            "promptTokenCount": TOKENS["prompt"],
            "candidatesTokenCount": TOKENS["answer"],
            "totalTokenCount": sum(TOKENS.values()),
        },
        "modelVersion": model,
        "responseId": "r1",
    }


def gemini_events(whole: Body) -> list[Body]:
    """Return the events of a reply of Gemini; the last one has an empty `groundingMetadata`."""
    (candidate,) = whole["candidates"]
    pieces = [
        {"content": {"role": "model", "parts": [{"text": CLEAN[n : n + 9]}]}, "index": 0} for n in range(0, 49, 9)
    ]
    pieces[-1]["groundingMetadata"] = candidate["groundingMetadata"]
    last = {"content": {"parts": []}, "finishReason": "STOP", "index": 0, "groundingMetadata": {}}
    return [{**whole, "candidates": [piece]} for piece in (*pieces, last)]


def sends(whole: Body, events: list[Body] | None = None) -> Reply:
    """Answer with a body, or with the events if the request wants a stream."""

    async def reply(exchange: Exchange) -> None:
        seen = exchange.seen
        if events is not None and (seen.json.get("stream") or ":stream" in seen.target):
            lines = [b"data: %b" % orjson.dumps(event) for event in events]
            await sse(*lines, *([b"data: [DONE]"] if "choices" in whole else []))(exchange)
        else:
            await raw(orjson.dumps(whole))(exchange)

    return reply


APIS: Mapping[str, tuple[Body, list[Body], str, int]] = {
    "responses": (responses(), responses_events(responses()), CLEAN, 2),
    "openai": (chat(), chat_events(chat()), CLEAN_CHAT, 1),
    "anthropic": (anthropic(), anthropic_events(anthropic()), CLEAN, 2),
    "gemini": (gemini(), gemini_events(gemini()), CLEAN, 3),
    "perplexity": (
        perplexity(),
        responses_events(perplexity()),
        "Line 15 opens on Friday[1][1]. The Colosseum is closed[2].",
        1,
    ),
}
"""By API: the reply, its events, the text of the answer without marks, and the billed searches."""
