"""A table whose rows have hidden topics, and a model that knows each topic by its keyword."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from replies import answer, choose, status

SHARES = {
    "noise": 0.25,
    "breakfast": 0.18,
    "parking": 0.14,
    "wifi": 0.11,
    "price": 0.08,
    "heating": 0.06,
    "reception": 0.05,
    "shower": 0.04,
    "bed": 0.03,
    "pool": 0.028,
    "lift": 0.022,
    "smell": 0.01,
}
"""The hidden topics, each with its share of the rows."""
PROMPT = "What do guests complain about? {{text}}"
_NAMES = "{} problems", "{} problem", "The {}"
"""The labels of a topic; of the first two, one is the plural of the other."""


def table(rows: int, seed: object = 0, shares: Mapping[str, float] = SHARES) -> list[dict[str, Any]]:
    """Return rows, each with the keyword of a random topic in its text."""
    topics = random.Random(f"{seed} rows").choices([*shares], [*shares.values()], k=rows)
    return [{"id": n, "text": f"Stay {n}: not happy with the {topic} at all"} for n, topic in enumerate(topics)]


def topic_in(text: str) -> str:
    """Return the hidden topic of a text or a label; `""` without one."""
    return next((word for word in re.findall(r"\w+", text.lower()) if word in SHARES), "")


class Knowing:
    """A model of hidden topics."""

    def __init__(self, known: Collection[str] = SHARES.keys(), *, unsure: float = 0.0) -> None:
        """`known`: the topics that it names in lists. `unsure`: the share of rows that get the first label."""
        self.known, self.unsure = known, unsure

    def list_for(self, prompt: str) -> list[dict[str, Any]]:
        """Return the topics of a reply to a request for a list."""
        lines = [json.loads(line) for line in prompt.splitlines() if line.startswith('{"id"')]
        if "\nRecords:\n" in prompt:
            return self._proposed(lines, random.Random(prompt).choice(_NAMES))
        if (most := re.search(r"into one list of at most (\d+) topics", prompt)) is not None:
            return _merged(lines)[: int(most[1])]
        return [{"id": line["id"], "definition": f"About {line['label']}."} for line in lines]

    def _proposed(self, records: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
        topics: dict[str, dict[str, Any]] = {}
        for record in records:
            if (topic := topic_in(record["text"])) in self.known:
                entry = {"label": name.format(topic), "records": [], "quote": f"not happy with the {topic}"}
                topics.setdefault(topic, entry)["records"].append(record["id"])
        return [*topics.values()]

    def label_for(self, prompt: str, labels: Sequence[str]) -> str:
        """Return the label of a row."""
        if random.Random(f"{prompt} is sure").random() < self.unsure:
            return labels[0]
        return next((label for label in labels if topic_in(label) == topic_in(prompt)), "other")


def _merged(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    topics: dict[str, dict[str, Any]] = {}
    for line in sorted(lines, key=lambda line: -line["records"]):
        topics.setdefault(topic_in(line["label"]), {"label": line["label"], "ids": []})["ids"].append(line["id"])
    return [*topics.values()]


def models(model: Knowing | None = None, *, lost: Callable[[str], bool] = lambda _: False) -> Any:
    """Return the replies of an endpoint with a model of hidden topics. `lost`: the prompts that fail."""
    model = model or Knowing()

    def reply(seen: Any) -> Any:
        if lost(seen.prompt):
            return status(400, "No.", code="content_filter")
        fields = seen.json["response_format"]["json_schema"]["schema"]["properties"]
        if "answer" in fields:
            return answer(json.dumps({"answer": model.label_for(seen.prompt, fields["answer"]["enum"])}))
        return answer(json.dumps({"topics": model.list_for(seen.prompt)}))

    return choose(reply)
