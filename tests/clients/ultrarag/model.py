"""A model that answers the same to the same request, with what UltraRAG's examples expect: told from the prompt."""

from __future__ import annotations

import hashlib
import html
from typing import Any

import orjson

from replies import answer, completion, raw, status
from upstream import Exchange, Reply

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def answered(body: dict[str, Any]) -> tuple[str, str]:
    """Return text and finish reason for a request; any difference in what is asked makes a difference in the text."""
    stops = body.get("stop") or []
    stops = [stops] if isinstance(stops, str) else stops
    text = _said(body)
    places = [(place + len(stop), stop) for stop in stops if (place := text.find(stop)) >= 0]
    if places:
        end, stop = min(places)
        return text[: end if body.get("include_stop_str_in_output") else end - len(stop)], "stop"
    return text, "stop"


def _said(body: dict[str, Any]) -> str:
    asked = orjson.dumps(body["messages"], option=orjson.OPT_SORT_KEYS)
    mark = hashlib.sha256(asked).hexdigest()[:8]
    number = int(mark, 16)
    if body.get("response_format"):  # models answer in all these ways
        as_json = f'{{"mark": "{mark}"}}'
        kinds = (as_json, f"```json\n{as_json}\n```", f"Sure: {as_json}", f"It is {mark}.", as_json[:-3], "")
        return kinds[number % len(kinds)]
    last = body["messages"][-1]["content"]
    prompt = last if isinstance(last, str) else "".join(part.get("text", "<image>") for part in last)
    plain = html.unescape(prompt)
    if "ability to perform web searches" in plain:
        searched = plain.count("<|begin_search_result|>")
        if searched < 2 + number % 3:
            query = f"<|begin_search_query|> who is {mark}? <|end_search_query|>"
            return f"<think>\nOkay, I wonder about {mark}.\n{query} and then"
        return f"<think>\nNow I know {mark}.\n</think>\n\nSo it is \\boxed{{{mark}}}.<|im_end|>"
    if plain.startswith("**Task Instruction:**"):
        return f"<think>\nreading {mark}\n</think>\n\n**Final Information**\n\nIt is {mark}.\n"
    if "output <stop>" in plain:
        return "<think>hm</think><search>" if number % 3 else f"<stop> {mark}"
    if "Outline Initialization" in plain:
        return f"# Page {mark}\n\n## One\n[To be filled]\n\n## Two\n[To be filled]\n"
    if "Section Completion" in plain:
        page = plain.split("Current Page Content:")[1].split("Task Steps:")[0].strip()
        return page.replace("[To be filled]", f"Filled with {mark}.", 1)
    if "<search>" in plain and "<information>" in plain:
        found = plain.count("</information>")
        return (
            f"<think>step {found}</think>\n<search> what of {mark}"
            if found < 3
            else f"<answer>{mark}</answer><|im_end|>"
        )
    if "<|begin_of_query|>" in plain:
        found = plain.count("<|end_of_documents|>")
        return (
            f"<think>step {found}\n<|begin_of_query|> what of {mark}"
            if found < 3
            else f"done</think><answer>{mark}</answer>"
        )
    if "So the answer is" in plain:
        return f"So the answer is: {mark}." if number % 2 else f"{mark} is the first step. And more."
    kind = number % 5
    if kind == 0:
        return f"<think>\nfirst {mark}, which"  # at a stop string or the longest answer
    if kind == 1:
        return f"<think>\nfirst\n</think>\n\n\\boxed{{{mark}}}"
    if kind == 2:
        return f"  because of that\n</think>\n\\boxed{{{mark}}} \n"
    if kind == 3:
        return f"Größe 🌍 {mark} <answer>{mark}</answer>"
    return f"Step 1: think. \\boxed{{{mark}}}"


REPLIES: dict[str, Reply] = {
    "null": answer(None),
    "empty": answer(""),
    "thought": answer("<think>\nhm\n</think>\n\nParis."),
    "open thought": answer("<think>\nLet me search"),
    "open thought, cut": answer("<think>\nLet me search", finish_reason="length"),
    "closed thought": answer("hm\n</think>\n\nParis."),
    "reasoning": answer("Paris.", message={"reasoning_content": "hm"}),
    "white space": answer(" \nParis. \n"),
    "no finish reason": answer("Paris.", finish_reason=None),
    "cut": answer("Par", finish_reason="length"),
    "tool calls": answer(None, message={"tool_calls": [CALL]}, finish_reason="tool_calls"),
    "400": status(400, "no"),
    "401": status(401, "no"),
    "404": status(404, "no"),
    "429": status(429, "slower"),
    "500": status(500, "no"),
    "no choices": raw(b'{"object": "chat.completion", "choices": []}'),
    "plain text": answer("Paris."),
    "an object": answer('{"city": "Paris"}'),
    "another object": answer('{"town": "Paris"}'),
    "a fenced object": answer('```json\n{"city": "Paris"}\n```'),
    "a cut object": answer('{"city": "Par', finish_reason="length"),
    "a filtered answer": answer("", finish_reason="content_filter"),
    "too long": status(400, "This model's maximum context length is 8 tokens", code="context_length_exceeded"),
}
BAD = "the bad one"


def deterministic():
    """Answer as `answered` says, or as the model's name does.

    The model "reply: NAME" gives every request the reply of that name, "one: NAME" the prompt `BAD` alone, and
    "late: NAME" half of the prompts of a later round of search_o1.
    """

    async def reply(exchange: Exchange) -> None:
        body = exchange.seen.json
        kind, _, name = str(body.get("model")).partition(": ")
        if kind == "reply" or (kind == "one" and exchange.seen.prompt == BAD) or (kind == "late" and _is_late(body)):
            await REPLIES[name](exchange)
            return
        text, finish = answered(body)
        await exchange.respond(200, {}, orjson.dumps(completion(exchange.seen, text, {}, {"finish_reason": finish})))

    return reply


def _is_late(body: dict[str, Any]) -> bool:
    asked = orjson.dumps(body["messages"], option=orjson.OPT_SORT_KEYS)
    return b"<|begin_search_result|>" in asked and hashlib.sha256(asked).digest()[0] % 2 == 0
