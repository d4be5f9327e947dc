"""An endpoint that answers single rows and requests for several rows.

The answer to a row follows from its text, so a test sees an answer that belongs to another row.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from replies import answer
from upstream import Exchange

LABELS = ("delivery", "return", "invoice", "praise")
Item = dict[str, Any]


def label(text: str) -> str:
    """Return the right label of a text."""
    return LABELS[zlib.crc32(text.encode()) % len(LABELS)]


def records(prompt: str) -> list[Item]:
    """Return the records of a prompt for several rows; `[]` for a prompt for one row."""
    _, mark, lines = prompt.partition("\nRecords:\n")
    return [orjson.loads(line) for line in lines.split("\n")] if mark else []


@dataclass
class Packs:
    """Answers each text by `answers`. `change` may spoil the list of a reply, given the number of the request."""

    answers: Callable[[str], Any] = label
    change: Callable[[list[Item], int], None] = lambda _items, _number: None
    around: Callable[[str, int], tuple[str, str]] = lambda text, _number: (text, "stop")
    """Changes the text of a reply to several, and returns its finish reason, too."""
    neighbours: float = 0.0
    """The share of rows in requests for several that get the answer to the row before them."""
    asked: Counter[str] = field(default_factory=Counter)
    """How often each text was asked about."""
    sizes: list[int] = field(default_factory=list)
    """The number of rows of each request, in order."""
    orders: list[list[str]] = field(default_factory=list)

    async def __call__(self, exchange: Exchange) -> None:
        """Answer a live request."""
        prompt = next(one["content"] for one in exchange.seen.json["messages"] if one["role"] == "user")
        text, finish = self.said(prompt, exchange.seen.number)
        await answer(text, finish_reason=finish)(exchange)

    def said(self, prompt: str, number: int = 0) -> tuple[str, str]:
        """Return the text that answers a prompt, and its finish reason."""
        asked = records(prompt)
        self.sizes.append(len(asked) or 1)
        self.orders.append([_text(one) for one in asked])
        if not asked:
            text = _bare(prompt)
            self.asked[text] += 1
            return str(self.answers(text)), "stop"
        items = []
        for at, one in enumerate(asked):
            self.asked[_text(one)] += 1
            of = asked[at - 1] if at and share_of(_text(one)) < self.neighbours else one
            items.append({"id": one["id"], "answer": _value(self.answers(_text(of)))})
        self.change(items, number)
        if asked[0]["id"] in {f"r{at}" for at in range(1, len(asked) + 1)}:
            fields = (f"{orjson.dumps(one['id']).decode()}: {orjson.dumps(one['answer']).decode()}" for one in items)
            return self.around(f"{{{', '.join(fields)}}}", number)
        return self.around(orjson.dumps({"answers": items}).decode(), number)


def share_of(text: str) -> float:
    """Return a number from 0 to 1 that follows from a text, and not from its label."""
    return zlib.crc32(f"share of {text}".encode()) / 2**32


def _text(record: Item) -> str:
    """Return the text of a record: its only field, without the instructions of a whole prompt."""
    (text,) = (value for name, value in record.items() if name != "id")
    return _bare(text) if "prompt" in record else str(text)


def _bare(prompt: str) -> str:
    return prompt.rpartition("? ")[2]


def _value(said: Any) -> Any:
    try:
        return orjson.loads(said)
    except orjson.JSONDecodeError:
        return said


def faults(seed: int, *, share: float = 0.05) -> Callable[[list[Item], int], None]:
    """Return a change of lists: items that are left out, doubled with another answer, swapped or invented."""
    chance = random.Random(seed)

    def change(items: list[Item], number: int) -> None:
        del number
        at = chance.randrange(len(items))
        if chance.random() < share:
            items.pop(at)
        elif chance.random() < share:
            items.append({"id": items[at]["id"], "answer": "wrong"})
        elif chance.random() < share:
            items[at] = {"id": "zzzz", "answer": items[at]["answer"]}
        if chance.random() < share:
            chance.shuffle(items)

    return change


def cut(seed: int, share: float = 0.05) -> Callable[[str, int], tuple[str, str]]:
    """Return a change of texts, some of which end too early."""
    chance = random.Random(seed)

    def change(text: str, number: int) -> tuple[str, str]:
        del number
        if chance.random() < share:
            return text[: chance.randrange(len(text) // 4, len(text))], "length"
        return text, "stop"

    return change


def right(rows: Sequence[Item], column: str = "answer") -> bool:
    """Return whether every row of an output has the label of its own text."""
    return all(row[column] == label(row["text"]) for row in rows)
