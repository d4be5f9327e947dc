"""A search for topics with a model that answers at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hidden_topics import Knowing, topic_in
from promptmill.features.topics.drawn import DrawnRow
from promptmill.features.topics.finding import SearchStep
from promptmill.features.topics.lists import ListRequest
from promptmill.jobs.inputs.short_forms import Labels


class Asker:
    """Asks a model of hidden topics, and remembers the steps with their rows."""

    def __init__(self, model: Knowing | None = None, lost: Sequence[str] = ()) -> None:
        """`lost`: the names of steps whose requests fail."""
        self._model, self._lost = model or Knowing(), lost
        self.error = ""
        self.steps: list[str] = []
        self.labelled: list[list[int]] = []
        self.asked: list[ListRequest] = []
        self.orders: list[Labels] = []

    def replies(self, step: SearchStep, asked: Sequence[ListRequest]) -> list[Any]:
        self.steps.append(step.name)
        self.asked += asked
        if step.name in self._lost:
            return [None for _ in asked]
        return [{"topics": self._model.list_for(each.text)} for each in asked]

    def labels(self, step: SearchStep, rows: Sequence[DrawnRow], labels: Labels) -> list[str]:
        self.steps.append(step.name)
        self.labelled.append([row.number for row in rows])
        self.orders.append(labels)
        if step.name in self._lost:
            return ["" for _ in rows]
        return [self._model.label_for(str(row.cells["text"]), labels.texts) for row in rows]


def names(found: Mapping[str, Any]) -> set[str]:
    """Return the hidden topics that were found."""
    return {topic_in(each["label"]) for each in found["topics"]} - {""}
