"""Replies of an endpoint with log probabilities, to questions with choices."""

from __future__ import annotations

import json
import math

from replies import answer, choose, status
from upstream import Reply, Seen


def likely(shares: dict[str, float]) -> Reply:
    """Return a reply that is the first choice, with the log probability of each."""
    texts = [json.dumps({"answer": text}) for text in shares]
    tokens = [{"token": text, "logprob": math.log(share)} for text, share in zip(texts, shares.values(), strict=True)]
    return answer(texts[0], logprobs={"content": [tokens[0] | {"top_logprobs": tokens}]})


def by_choices(*replies: dict[str, float]) -> Reply:
    """Return a reply with the shares of the choices that a request has; a failure for other choices."""
    known = {frozenset(shares): likely(shares) for shares in replies}
    return choose(lambda seen: known.get(frozenset(choices_of(seen)), status(400, "no reply to these")))


def choices_of(seen: Seen) -> list[str]:
    """Return the choices of a request."""
    schema = seen.json["response_format"]["json_schema"]["schema"]
    found: list[str] = schema["properties"]["answer"]["enum"]
    return found
