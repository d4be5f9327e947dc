"""Finding topics: the steps from drawn rows to labels, and the figures of their trial on held-out rows.

    sample ─▶ lists ─▶ one list ─▶ definitions ─▶ labels of the held-out rows ─▶ coverage, shares
                ▲                                        │ many rows are "other"
                └──────── topics of the other rows ◀─────┘   (once; tried on fresh rows)

Topics are never measured on the rows in which they were found, because topics fit such rows better than other rows.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, TypeVar

from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.values import JsonDict
from promptmill.core.wording import counted, cut, listed
from promptmill.features.compare.paired_proportions import exact_interval
from promptmill.features.topics.drawn import Drawn, DrawnRow
from promptmill.features.topics.lists import (
    OF_OTHER,
    OTHER,
    QUOTES,
    ListRequest,
    Quote,
    Topic,
    batches,
    beginning_of,
    defined,
    definitions,
    groups,
    merge,
    merged,
    proposal,
    proposed,
    united,
)
from promptmill.jobs.inputs.short_forms import Labels, labels_of

T = TypeVar("T")
LARGE = 0.05
"""If more than this share of held-out rows has no topic, topics are searched once more, in the rows without a topic."""
_FEWEST_OTHER = 3  # rows; fewer rows cannot show a common topic
_FEWEST_FRESH = 50  # rows; with fewer rows, an interval is wider than 10 points to each side
_FAILED = 0.5
_LONGEST_ERROR = 300  # characters
_MISSED = 0.05  # the probability that a sample misses a topic with the share `may_miss`


class SearchStep(NamedTuple):
    """A step of the search."""

    name: str
    """The name of the step's jobs: `lists`, `merged`, `defined` or `labels`."""
    words: str
    is_certain: bool = True
    """If False, the step is taken only if many held-out rows have no topic."""


class TopicAsker(Protocol):
    """Gets answers from a model. Answers are stored, so a repeated call returns the same answers."""

    @property
    def error(self) -> str:
        """The text of the first error in the last step; `""` if nothing failed."""
        ...

    def replies(self, step: SearchStep, asked: Sequence[ListRequest]) -> list[JsonDict | None]:
        """Return the replies to requests for lists; None for a request that failed."""
        ...

    def labels(self, step: SearchStep, rows: Sequence[DrawnRow], labels: Labels) -> list[str]:
        """Return the labels of rows; `""` for a row that failed."""
        ...


def share_of(hits: int, rows: int) -> JsonDict:
    """Return the share of hits among randomly drawn rows, with its 95 % interval; without rows, both are None."""
    share, interval = (None, None) if not rows else (hits / rows, exact_interval(hits, rows))
    return {"rows": rows, "hits": hits, "share": share, "interval": interval}


def may_miss(rows: int) -> float:
    """Return the share of the rarest topic that `rows` random rows contain with a probability of 95 %.

    >>> round(may_miss(200), 4), round(may_miss(300), 4)
    (0.0149, 0.0099)
    """
    return float(1 - _MISSED ** (1 / rows))


def other_order(items: Sequence[T], seed: str) -> list[T]:
    """Return two or more different items in another, random order. Equal arguments give equal orders.

    >>> other_order(["price", "other"], "any seed")
    ['other', 'price']
    """
    numbers, found = random.Random(f"{seed} order"), list(items)  # noqa: S311 (no secret)
    while found == list(items):
        numbers.shuffle(found)
    return found


@dataclass
class Finding:
    """One search for topics."""

    drawn: Drawn
    prompt: str
    most: int
    """The most topics, without `OTHER`."""
    asker: TopicAsker
    tell: Callable[[str], object] = lambda _: None
    """A function that is called with a text about each step."""
    is_estimate: bool = False
    """Whether to take all steps, even those that a search leaves out when the list of topics is full."""
    notes: list[str] = field(default_factory=list)
    """Remarks for the user."""
    _seen: int = 0
    """The number of rows in which topics were searched."""

    def figures(self) -> JsonDict:
        """Take all steps, and return the figures. Raises `PromptmillError` if most requests of a step fail."""
        drawn, rows = self.drawn, self.drawn.held_out
        if drawn.is_all:
            self.notes.append(
                f"the input has only {counted(drawn.rows - drawn.empty, 'row')} with text: topics are found in "
                f"{len(drawn.sample):,} of them, and tried on the other {len(rows):,}"
            )
        lists, self._seen = self._proposed(drawn.sample, drawn.chosen)
        topics = self._defined(self._merged(lists))
        labels = self._labelled(topics, rows)
        split = self._split(topics, rows, labels)
        if split is not None:
            topics, rows = split, drawn.fresh
            labels = self._labelled(topics, rows, is_certain=False)
        if without := [topic.label for topic in topics if not topic.definition]:
            self.notes.append(f"without a definition: {listed(without, 5)}")
        again = self._labelled(topics, rows, in_other_order=True)
        every = list(zip(rows, labels, strict=True))
        if drawn.is_all:
            every += zip(drawn.sample, self._labelled(topics, drawn.sample, is_rest=True), strict=True)
        pairs = [pair for pair in zip(labels, again, strict=True) if all(pair)]
        answered = [label for label in labels if label]
        return {
            "rows": {
                "all": drawn.rows,
                "empty": drawn.empty,
                "sample": len(drawn.sample),
                "chosen": len(drawn.chosen),
                "covered": drawn.covered,
                "held_out": len(rows),
                "failed": len(rows) - len(answered),
            },
            **self._shares(topics, every),
            "no_label": share_of(answered.count(OTHER), len(answered)),
            "stability": share_of(sum(one == other for one, other in pairs), len(pairs)),
            "may_miss": may_miss(self._seen),
            "is_split": split is not None,
            "notes": self.notes,
        }

    # Lists

    def _proposed(
        self, rows: Sequence[DrawnRow], chosen: Sequence[DrawnRow] = (), *, is_certain: bool = True
    ) -> tuple[list[list[Topic]], int]:
        """Return lists of the topics of rows, and the number of random `rows` whose request succeeded."""
        parts = batches(rows)
        count = len(parts)
        parts += batches(chosen)
        which = "row" if is_certain else "held-out row"
        words = f"topics of {counted(len(rows), which)}{'' if is_certain else ' without one'}"
        if chosen:
            words += f", and of {len(chosen):,} that differ from them"
        replies = self._replies(SearchStep("lists", words, is_certain), [proposal(self.prompt, part) for part in parts])
        found = [
            proposed(part, reply) for part, reply in zip(parts[:count], replies, strict=False) if reply is not None
        ]
        for part, reply in zip(parts[count:], replies[count:], strict=True):
            if reply is not None:  # a chosen row shows that a topic exists, but not in how many rows
                found.append([replace(topic, rows=1) for topic in proposed(part, reply)])
        if not any(found) and is_certain:
            raise input_error(
                f"The model names no topic in {counted(len(rows), 'row')}; ask another question in ",
                Named("prompt"),
                ", or use a stronger model.",
            )
        searched = sum(len(part) for part, reply in zip(parts[:count], replies, strict=False) if reply is not None)
        return [each for each in found if each], searched

    def _merged(self, lists: Sequence[Sequence[Topic]], *, is_certain: bool = True) -> list[Topic]:
        """Merge lists in rounds until one list is left."""
        while True:
            parts = groups(lists)
            is_last = len(parts) == 1
            most = self.most if is_last else 2 * self.most  # rare topics of one part may be frequent in another
            asked = [merge(self.prompt, part, most) for part in parts]
            words = f"{counted(len(lists), 'list')} merged into {len(parts):,}, of {most:,} topics at most"
            replies = self._replies(SearchStep("merged", words, is_certain), asked)
            lists, left_out = [], list[Topic]()
            for part, reply in zip(parts, replies, strict=True):
                kept, others = (part[:most], part[most:]) if reply is None else merged(part, reply, most)
                lists.append(kept)
                left_out += others
            if left_out:
                shown = listed([f"{topic.label} ({counted(topic.rows, 'row')})" for topic in united(left_out)], 5)
                self.notes.append(f"left out, because a list has at most {most:,} topics: {shown}")
            if is_last:
                return list(lists[0])

    def _defined(self, topics: Sequence[Topic], *, is_certain: bool = True) -> list[Topic]:
        asked = definitions(self.prompt, topics)
        step = SearchStep("defined", f"definitions of {counted(len(topics), 'topic')}", is_certain)
        return defined(topics, [reply for reply in self._replies(step, asked) if reply is not None])

    def _replies(self, step: SearchStep, asked: Sequence[ListRequest]) -> list[JsonDict | None]:
        self.tell(step.words)
        replies = self.asker.replies(step, asked)
        self._check_failures(step, sum(reply is None for reply in replies), len(asked), "request")
        return replies

    def _check_failures(self, step: SearchStep, failed: int, count: int, noun: str) -> None:
        if not failed:
            return
        words = f"{failed:,} of {counted(count, noun)} failed in the step: {step.words}"
        if error := " ".join(self.asker.error.split()).rstrip("."):
            words += f"; the first error: {cut(error, _LONGEST_ERROR)}"
        if failed > _FAILED * count:
            raise PromptmillError(Code.INVALID_INPUT, f"{words}.", (Named("again", "failed"), " sends them again."))
        self.notes.append(words)

    # Labels

    def _labelled(
        self,
        topics: Sequence[Topic],
        rows: Sequence[DrawnRow],
        *,
        is_certain: bool = True,
        in_other_order: bool = False,
        is_rest: bool = False,
    ) -> list[str]:
        which = "remaining row" if is_rest else "held-out row"
        words = f"labels of {counted(len(rows), which)}" + (", in another order" if in_other_order else "")
        step = SearchStep("labels", words, is_certain)
        defined_labels = [(topic.label, topic.definition) for topic in topics] + [(OTHER, OF_OTHER)]
        if in_other_order:
            defined_labels = other_order(defined_labels, self.drawn.seed)
        labels = labels_of(dict(defined_labels))
        self.tell(words)
        found = self.asker.labels(step, rows, labels)
        self._check_failures(step, found.count(""), len(rows), "row")
        return found

    def _split(self, topics: Sequence[Topic], rows: Sequence[DrawnRow], labels: Sequence[str]) -> list[Topic] | None:
        """Return the topics and new ones of the rows without a topic; None if these are few or show no new topic."""
        others = [row for row, label in zip(rows, labels, strict=True) if label == OTHER]
        answered = len(labels) - labels.count("")
        if len(others) < _FEWEST_OTHER or len(others) <= LARGE * answered:
            return None
        if len(self.drawn.fresh) < _FEWEST_FRESH:
            self.notes.append(
                f"{len(others):,} of {counted(answered, 'row')} fit no topic, and there are no further rows to try "
                "more topics on; read these, or find topics in a larger input"
            )
            return None
        if len(topics) >= self.most and not self.is_estimate:
            self.notes.append(
                f"{len(others):,} of {counted(answered, 'row')} fit no topic, and there is no room for another topic; "
                "allow more topics"
            )
            return None
        more, searched = self._proposed(others, is_certain=False)
        found = self._merged([topics, *more], is_certain=False) if more else topics
        if {topic.label for topic in found} == {topic.label for topic in topics}:
            self.notes.append(f"{counted(len(others), 'held-out row')} without a topic have no new one in common")
            return None
        self._seen += answered - len(others) + searched  # rows with a topic, and rows in which topics were searched
        return self._defined(found, is_certain=False)

    def _shares(self, topics: Sequence[Topic], every: Sequence[tuple[DrawnRow, str]]) -> JsonDict:
        """Return the topics with their shares and quotes, in the order of the trial, with `OTHER` last."""
        of_label: dict[str, list[DrawnRow]] = {}
        for row, label in every:
            of_label.setdefault(label, []).append(row)
        counts = Counter({label: len(rows) for label, rows in of_label.items() if label})
        is_exact = counts.total() == self.drawn.rows - self.drawn.empty
        found = []
        for topic in [*topics, Topic(OTHER, definition=OF_OTHER)]:
            share = share_of(counts[topic.label], counts.total())
            if is_exact:
                share["interval"] = (share["share"], share["share"])
            beginnings = [Quote(row.number, beginning_of(row)) for row in of_label.get(topic.label, ())]
            by_text = {quote.text: quote for quote in reversed([*topic.quotes, *beginnings]) if quote.text}
            quotes = [quote._asdict() for quote in reversed(by_text.values())][:QUOTES]
            found.append({"label": topic.label, "definition": topic.definition, **share, "quotes": quotes})
        return {"topics": found, "is_exact": is_exact}
