"""Rows with a topic that most of their words tell, for students: their texts, labels, vectors and strong model."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from typing import Any
from zlib import crc32

import numpy as np

from promptmill.features.labels.student import RowText
from replies import answer

ROWS = 1_500
MOST_WRONG = 0.12
"""Far above the promised 5 %, which a draw in twenty may exceed."""
TOPICS = {
    "sport": "goal match team player coach league referee stadium",
    "money": "bank share profit market price loan budget tax",
    "health": "doctor patient virus hospital drug cancer vaccine nurse",
}
STUDENT = ("--prompt", "Which topic? {{text}}", "--choices", ",".join(TOPICS), "--sure", "strong", "--student", "words")
POINTS = [f"{when}-{what}" for what in ("draw", "learn", "deliver", "deliver:3") for when in ("before", "after")]
POINTS += [f"before-student:{n}" for n in (1, 200, 400, 1_000, 4_000)]
POINTS += [f"{'before' if n % 2 else 'after'}-write:{n}" for n in (2, 15, 30, 45, 60, 75)]
POINTS += [f"before-put:{n}" for n in (6, 7, 8, 9, 10)]


def text(number: int) -> str:
    """Return a text: most have words of their topic, some have words of all topics."""
    chance = random.Random(number)
    words = TOPICS[chance.choice([*TOPICS])].split()
    if chance.random() < 0.2:
        words = " ".join(TOPICS.values()).split()
    return " ".join([*chance.choices(words, k=6), f"number {number}"])


def topic(of: str) -> str:
    """Return the label that the strong model gives to a text: the topic of most words."""
    counts = {name: sum(word in words.split() for word in of.split()) for name, words in TOPICS.items()}
    return max(counts, key=lambda name: counts[name])


def strong(seen: Any) -> Any:
    return answer(topic(seen.prompt))


def row(of: str) -> RowText:
    """Return a text with a vector: the sum of a direction for each of its words."""
    vector = np.sum([np.random.default_rng(crc32(word.encode())).normal(size=24) for word in of.split()], 0)
    return RowText(of, vector.astype("<f2").tobytes())


def named(bench: Any) -> tuple[str, str]:
    block = {"base_url": bench.upstream.url, "retries": 3, "base_delay": 0.01, "concurrency": 32}
    models = {"strong": {"openai": {**block, "model_name": "strong"}, "price": {"input": 10, "output": 30}}}
    return "--set", f"models={json.dumps(models)}"


def sent(bench: Any) -> Counter[str]:
    return Counter(seen.json["model"] for seen in bench.upstream.seen)


def wrong(rows: list[dict[str, Any]]) -> float:
    return [row["answer"] == topic(row["text"]) for row in rows].count(False) / len(rows)


def drawn(bench: Any) -> set[tuple[int, int]]:
    with sqlite3.connect(bench.folder.database) as database:
        return {*database.execute("SELECT round, n FROM chosen")}
