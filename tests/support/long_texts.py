"""Documents with planted facts, and a model with a small window that finds the facts of what it reads."""

from __future__ import annotations

import json
import random
import re
from typing import Any

from replies import answer, choose, status
from upstream import Reply, Seen

FACT = re.compile(r"Party\s+(\w+)\s+pays\s+(\d+)\s+euros")
_WORDS = ("agreement", "term", "notice", "party", "shall", "may", "within", "days", "consent", "clause", "law")
_TOO_LONG = "This model's maximum context length is 2000 tokens. Please reduce the length of the messages."


def document(pages: int, facts: int, seed: int = 0) -> tuple[str, dict[str, int]]:
    """Return a text of so many pages of some 300 words, and the page of each planted fact."""
    chance = random.Random(seed)
    places = {f"P{number}": chance.randrange(pages) for number in range(facts)}
    texts = []
    for page in range(pages):
        words = [chance.choice(_WORDS) for _ in range(300)]
        planted = [f"Party {name} pays {name[1:]}00 euros." for name, at in places.items() if at == page]
        for sentence in planted:
            words.insert(chance.randrange(len(words)), sentence)
        texts.append(f"Page {page + 1}.\n{' '.join(words)}.")
    return "\n\f\n".join(texts), {name: at + 1 for name, at in places.items()}


def reader(window: int = 2000) -> Reply:
    """Answer with the facts of the prompt; a prompt longer than the window is refused, as vLLM refuses it."""

    def pick(seen: Seen) -> Reply:
        if len(seen.prompt) / 4 > window:
            return status(400, _TOO_LONG, code="context_length_exceeded")
        return answer(_facts(seen))

    return choose(pick)


def _facts(seen: Seen) -> str:
    wanted: dict[str, Any] = seen.json.get("response_format", {}).get("json_schema", {}).get("schema", {})
    found = FACT.findall(seen.prompt)
    fields: dict[str, Any] = {
        "party": [name for name, _ in found],
        "amount": float(found[0][1]) if found else None,
        "count": len(found),
    }
    return json.dumps({name: fields.get(name) for name in wanted.get("properties", ())} or fields)
