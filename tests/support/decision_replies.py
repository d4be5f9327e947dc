"""Replies of an `Upstream` that decides, in the dialect of the request, with probabilities that follow from it.

`decides()` answers every question; the probabilities come from a digest of evidence and question, in two decimals, as
servers send them. `changed` may change the reply before it is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from upstream import Exchange, Reply

Body = dict[str, Any]


def shares(texts: Sequence[str], evidence: Any, name: str) -> dict[str, float]:
    """Return the probability of each text, for a question about this evidence."""
    digests = (hashlib.sha256(orjson.dumps([evidence, name, text])).digest() for text in texts)
    weights = [1 + int.from_bytes(digest[:2]) % 1000 for digest in digests]
    return {text: round(weight / sum(weights), 2) for text, weight in zip(texts, weights, strict=True)}


def likeliest(chances: dict[str, float]) -> str:
    """Return the most probable text."""
    return max(chances, key=chances.__getitem__)


def decides(changed: Callable[[Body], Body] = lambda body: body, model: str = "jev-1.14.0") -> Reply:
    """Answer the questions of a request in any dialect of models that decide."""

    async def reply(exchange: Exchange) -> None:
        body = exchange.seen.json
        answers = _listed(body) if isinstance(body.get("questions"), list) else _mapped(body)
        tokens = len(exchange.seen.raw) // 4
        if "state" in body or isinstance(answers, list):
            usage = {"input_tokens": tokens, "output_tokens": 2}
        else:
            usage = {"total_input_tokens": tokens, "total_cached_tokens": 0}
        whole = {"model": model, "answers": answers, "usage": usage}
        await exchange.respond(200, {}, orjson.dumps(changed(whole)))

    return reply


def _mapped(body: Body) -> Body:
    evidence, answers = body.get("state", body.get("input")), {}
    for name, question in body["questions"].items():
        match question["type"]:
            case "noul":
                answers[name] = {"type": "noul", "noul": shares(["yes", "no"], evidence, name)["yes"]}
            case "choice":
                chances = shares([*question["criteria"]], evidence, name)
                answers[name] = {"type": "choice", "choice": likeliest(chances), "probabilities": chances}
            case "score":
                chances = shares([str(at) for at in range(len(question["criteria"]))], evidence, name)
                answers[name] = {"type": "score", "score": 0.5, "probabilities": chances}
    return answers


def _listed(body: Body) -> list[Body]:
    answers: list[Body] = []
    for question in body["questions"]:
        name, evidence = question["name"], body["input"]
        match question["type"]:
            case "predicate":
                yes = shares(["yes", "no"], evidence, name)["yes"]
                answers.append({"type": "predicate", "name": name, "probability": yes})
            case "choice":
                chances = shares([one["value"] for one in question["choices"]], evidence, name)
                told = [{"value": value, "probability": share} for value, share in chances.items()]
                answer = {"type": "choice", "choice": likeliest(chances), "confidence": 0.5, "probabilities": told}
                answers.append({"name": name, **answer})
            case "score":
                chances = shares([str(at) for at in range(len(question["levels"]))], evidence, name)
                levels = zip(question["levels"], chances.items(), strict=True)
                told = [{"value": int(at), "label": one["label"], "probability": p} for one, (at, p) in levels]
                answers.append({"type": "score", "name": name, "score": 0.5, "probabilities": told})
    return answers
