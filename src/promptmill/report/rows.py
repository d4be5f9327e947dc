"""The rows of a page, as columns of texts: these are deflated better than rows."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson

from promptmill.core.wording import counted, cut

LENGTHS = (20_000, 8_000, 4_000, 2_000, 1_000, 600, 400, 300, 200, 140, 100, 80)  # of a text, at most
TEXTS = 64_000_000  # characters of all rows, in memory
_ROOMY = 4  # so many parts may each be as long as a text may be
_TRIED = 2_000  # rows, which show how well texts are deflated
_WORD_BEGUN = re.compile(r"(?<!\w)\w+\Z")
Filter: TypeAlias = tuple[str, str, int, int]
"""The key and the label of a button, a mask, and what of it the state of a row has that the button shows."""


@dataclass(slots=True)
class PageRows:
    """The rows of a report, as columns: these are deflated better than rows."""

    number: list[int] = field(default_factory=list)
    state: list[int] = field(default_factory=list)
    """Bits, which `filters` select."""
    asked: list[str | list[tuple[str, str]]] = field(default_factory=list)
    """The prompt, or texts with labels."""
    answer: list[str | list[str]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    before: str = ""
    """The common beginning of all prompts, such as their template's; `asked` leaves it out."""
    after: str = ""
    left_out: int = 0
    """Rows that the size of the file has no room for."""
    filters: Sequence[Filter] = ()
    labels: Sequence[str] | None = None
    """The names of the answers of a comparison, of the right one, and of the verdict."""
    wrong: Sequence[int] = ()
    """The bit of each answer that shows it as wrong, or 0."""

    def add(
        self,
        number: int,
        state: int,
        asked: str | list[tuple[str, str]],
        answer: str | list[str],
        *,
        seconds: float = 0,
        tokens: int = 0,
    ) -> None:
        """Add a row."""
        self.number.append(number)
        self.state.append(state)
        self.asked.append(asked)
        self.answer.append(answer)
        self.seconds.append(seconds)
        self.tokens.append(tokens)

    def packed(self, most: int) -> tuple[bytes, int]:
        """Return the rows, deflated to `most` bytes, and the length after which texts are cut off, 0 if none is.

        If they have no room, some are left out at random and removed from this object.
        """
        longest = max((len(text) for text in self._texts()), default=0)
        lengths = [longest, *(length for length in LENGTHS if length < longest)]
        tried = self._some(range(0, len(self.number), 1 + len(self.number) // _TRIED))
        room = most * len(tried.number) // max(1, len(self.number))
        while lengths[1:] and len(tried._deflated(lengths[0])) > room:
            lengths.pop(0)
        while len(packed := self._deflated(lengths[0])) > most:
            if lengths[1:]:
                lengths.pop(0)
            else:
                self._drop(len(self.number) * most // len(packed) * 97 // 100)
        return packed, lengths[0] if lengths[0] < longest else 0

    def about(self, total: int, cut_at: int, so_far: str) -> dict[str, Any]:
        """Return the facts for the page, of `total` rows."""
        shown = len(self.number)
        note = f"{'All ' if total > 1 else ''}{counted(shown, 'row')}{so_far}."
        if shown < total:
            why = f" for the size of this file ({counted(self.left_out, 'row')} left out)" if self.left_out else ""
            note = f"A random sample of {shown:,} of {counted(total, 'row')}{why}; counts and charts are of all rows."
        if cut_at:
            note += f" Texts of more than {cut_at:,} characters are cut off."
        found = {"note": note, "before": self.before, "after": self.after}
        return found | {"filters": self.filters, "labels": self.labels, "wrong": self.wrong}

    def leave_out_template(self) -> None:
        """Leave out how all prompts begin and end."""
        prompts = [text for text in self.asked if isinstance(text, str)]
        if len(prompts) < 2 or len(prompts) < len(self.asked):
            return
        self.before = _WORD_BEGUN.sub("", _common_start(prompts))
        left = [text[len(self.before) :][::-1] for text in prompts]
        self.after = _WORD_BEGUN.sub("", _common_start(left))[::-1]
        end = -len(self.after) or None
        self.asked = [text[len(self.before) : end] for text in prompts]

    def _texts(self) -> Iterator[str]:
        for asked in self.asked:
            yield from [asked] if isinstance(asked, str) else (text for _, text in asked)
        for answer in self.answer:
            yield from [answer] if isinstance(answer, str) else answer

    def _some(self, places: Sequence[int]) -> PageRows:
        return PageRows(
            [self.number[at] for at in places],
            [self.state[at] for at in places],
            [self.asked[at] for at in places],
            [self.answer[at] for at in places],
            [self.seconds[at] for at in places],
            [self.tokens[at] for at in places],
            self.before,
            self.after,
        )

    def _drop(self, kept: int) -> None:
        """Keep so many rows, evenly spaced."""
        every = len(self.number) / max(1, kept)
        some = self._some([int(at * every) for at in range(kept)])
        self.left_out += len(self.number) - kept
        self.number, self.state, self.asked = some.number, some.state, some.asked
        self.answer, self.seconds, self.tokens = some.answer, some.seconds, some.tokens

    def _deflated(self, length: int) -> bytes:
        """Return the columns, texts cut off after `length` characters."""
        columns = {
            "steps": [now - before for before, now in zip([0, *self.number], self.number, strict=False)],
            "state": self.state,
            "asked": [
                cut(asked, length) if isinstance(asked, str) else [(name, cut(text, length)) for name, text in asked]
                for asked in self.asked
            ],
            "answer": [
                cut(answer, length) if isinstance(answer, str) else [cut(text, length) for text in answer]
                for answer in self.answer
            ],
            "seconds": self.seconds,
            "tokens": self.tokens,
        }
        return zlib.compress(orjson.dumps(columns), 9)


def some_parts(parts: Sequence[tuple[str, str]], most: int, *, from_end: bool = False) -> list[tuple[str, str]]:
    """Return texts with labels, cut off: the first 40, or the last. With many, each has less room."""
    # of a row: turns of a conversation, or columns
    left_out = max(0, len(parts) - 40)
    kept = parts[left_out:] if from_end else parts[: len(parts) - left_out]
    each = max(LENGTHS[-1], min(most, _ROOMY * most // max(1, len(kept))))
    found = [(cut(label, LENGTHS[-1]), cut(text, each)) for label, text in kept]
    more = [("…", f"{left_out:,} more")] if left_out else []
    return [*more, *found] if from_end else [*found, *more]


def _common_start(texts: Sequence[str]) -> str:
    """Return how all texts begin."""
    first, last = min(texts), max(texts)
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((at for at, (one, other) in pairs if one != other), len(first))]
