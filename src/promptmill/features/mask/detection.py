"""Finds values to mask in texts.

    text ─▶ Folded ─▶ each detector of the kinds ─▶ spans, of which the first and longest count

A detector takes a folded text and yields spans of it. Another package's function takes the text itself, and yields
`(start, end, label)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

from promptmill.features.mask.folded_text import Folded


class ValueSpan(NamedTuple):
    """A value in a text: the characters `start` to `end - 1`. `label`: its kind in a mask, such as `EMAIL`."""

    start: int
    end: int
    label: str


Detect: TypeAlias = Callable[[str], Iterable[ValueSpan]]


_HIDDEN = "\0"
_WINDOW, _CONTEXT = 50_000, 4_000
"""The characters of a long text that are searched together, and before and after them. No other thread runs during some
searches: they take up to 40 ms. Values have fewer characters than the context, apart from names of a list."""


class Detectors(NamedTuple):
    """The detectors of a job, the most specific first: where two find a value, the first one names it."""

    of_folded: Sequence[Detect]
    of_text: Sequence[Detect] = ()
    """The detectors of other packages."""

    def spans(self, text: str) -> list[ValueSpan]:
        """Return the values in a text, in order, none inside another."""
        found = self._found(text) if len(text) <= _WINDOW else self._found_by_windows(text)
        for detect in self.of_text:
            found += detect(text)
        if self.of_text:
            return apart(found)
        found.sort()
        return found

    def _found_by_windows(self, text: str) -> list[ValueSpan]:
        context = max([_CONTEXT, *(getattr(detect, "reach", 0) for detect in self.of_folded)])
        found, last = list[ValueSpan](), 0
        for start in range(0, len(text), _WINDOW):
            first, end = max(0, start - context), start + _WINDOW
            for begin, to, label in sorted(self._found(text[first : end + context])):
                if max(start, last) <= first + begin < end:  # a window has the values that begin in it
                    last = first + to
                    found.append(ValueSpan(first + begin, last, label))
        return found

    def _found(self, text: str) -> list[ValueSpan]:
        folded = Folded.of(text)
        found: list[ValueSpan] = []  # `list[ValueSpan]()` takes 0.3 µs more
        spans: list[ValueSpan] = []
        remaining = folded.text
        for detect in self.of_folded:
            remaining = hidden(remaining, spans)
            spans = [*detect(remaining)]
            found += spans
        if found and len(folded.changes) > 1:
            found = [ValueSpan(*folded.span(start, end), label) for start, end, label in found]
        return found


def hidden(text: str, spans: Sequence[ValueSpan]) -> str:
    """Return a text in which another character replaces the characters of values, so that no further detector sees
    them. The `spans` are in order, and none is inside another."""
    if not spans:
        return text
    pieces: list[str] = []
    last = 0
    for start, end, _ in spans:
        pieces += text[last:start], _HIDDEN * (end - start)
        last = end
    return "".join((*pieces, text[last:]))


def apart(spans: Iterable[ValueSpan]) -> list[ValueSpan]:
    """Return spans in order. Spans that overlap become one, with the label of the first detector.

    >>> apart([ValueSpan(4, 9, "CARD"), ValueSpan(0, 5, "PHONE"), ValueSpan(20, 22, "ID")])
    [ValueSpan(start=0, end=9, label='CARD'), ValueSpan(start=20, end=22, label='ID')]
    """
    joined = list[tuple[int, int, tuple[int, str]]]()
    for start, end, named in sorted((span.start, span.end, (n, span.label)) for n, span in enumerate(spans)):
        if joined and start < joined[-1][1]:
            first, last, earlier = joined[-1]
            joined[-1] = first, max(last, end), min(earlier, named)
        else:
            joined.append((start, end, named))
    return [ValueSpan(start, end, label) for start, end, (_, label) in joined]
