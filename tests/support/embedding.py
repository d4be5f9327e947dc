"""An endpoint of embeddings: the vector of a text follows from the text."""

from __future__ import annotations

import base64
import random
from array import array
from collections.abc import Callable
from typing import Any

import orjson

from upstream import Exchange, Reply

SIZE = 8


def vector(text: str, size: int = SIZE) -> list[float]:
    """Return the vector of a text, as 32-bit floats."""
    drawn = random.Random(text)
    return [*array("f", (drawn.uniform(-1, 1) for _ in range(size)))]


def embeddings(
    change: Callable[[list[dict[str, Any]], int], None] = lambda _data, _number: None, *, takes: int = 2048
) -> Reply:
    """Answer with a vector for each text. `change`: changes the list of vectors, given the number of the request.

    `takes`: the most texts in a request; more are refused.
    """

    async def reply(exchange: Exchange) -> None:
        asked = exchange.seen.json
        texts = [*map(str, asked["input"])] if isinstance(asked["input"], list) else [asked["input"]]
        if len(texts) > takes:
            refused = {"error": {"message": f"batch size {len(texts)} > maximum allowed batch size {takes}"}}
            await exchange.respond(413, {}, orjson.dumps(refused))
            return
        is_text = asked.get("encoding_format") == "base64"
        data: list[dict[str, Any]] = []
        for at, text in enumerate(texts):
            numbers = vector(text, asked.get("dimensions") or asked.get("output_dimension") or SIZE)
            written = base64.b64encode(array("f", numbers).tobytes()).decode() if is_text else numbers
            data.append({"object": "embedding", "index": at, "embedding": written})
        change(data, exchange.seen.number)
        tokens = sum(len(text.split()) for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        await exchange.respond(200, {}, orjson.dumps({"object": "list", "data": data, "model": "m", "usage": usage}))

    return reply
