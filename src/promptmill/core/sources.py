"""Sources: the places where the values of an answer were found.

    answer    {"number": "R-7",             "items": [{"item": "screws"}, {"item": "nails"}]}
    sources   {"number": {"quote": …},      "items": [{"quote": …},       {"quote": …}]}

The sources of an answer are nested like the answer: an object for an object, and a list for a list. In place of a
value, they have a `ValueSource`, a text (`"page 3"`), or None. Citations of web pages are a list for the whole answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from typing_extensions import TypedDict

Sources: TypeAlias = Any
"""The sources of an answer: nested objects and lists with `ValueSource`, texts and None."""


class Box(TypedDict):
    """A rectangle on a page of a PDF as it is displayed, in points (1/72 inch) from the page's top left corner."""

    page: int
    """The number of the page, from 1."""
    left: float
    top: float
    right: float
    bottom: float


class ValueSource(TypedDict, total=False):
    """The place of a value: the words that state it, or a page of the web."""

    quote: str
    """The words, copied from the text."""
    is_missing: bool
    """Set if `quote` is empty or not in the text: then the value has no source."""
    column: str
    """The input's column that has the text. It is absent if the text is not from a column, or if the column has changed
    since, so that no place is known."""
    start: int
    """The position of the quote's first character in the text, from 0."""
    end: int
    """The position of the character that follows the quote."""
    page: int
    """The number of the page, from 1, in a text with pages."""
    heading: str
    paragraph: int
    """In a Word document or a web page: the heading above the words, and the number of their paragraph under it."""
    box: list[Box]
    """The places of the words on the pages of a PDF: one for each line."""
    url: str
    title: str


PAGE = "\f"
"""The character that ends a page in a text."""
ATTACHED = "Attachments (not sent): "
"""The beginning of a line that names the files attached to a page. It and an empty line precede the page's text."""


def with_page(source: ValueSource, text: str) -> ValueSource:
    """Return a source with its place in `text`, and with its page if the text has pages."""
    return {**source, "page": 1 + text.count(PAGE, 0, source["start"])} if PAGE in text else source


def leaves(sources: Sources) -> Iterator[tuple[str, ValueSource]]:
    """Yield each source with the name of its field, such as `seller.city`, or with `""` for a whole answer."""
    waiting: list[tuple[str, Any]] = [("", sources)]
    while waiting:
        name, at = waiting.pop()
        if isinstance(at, list):
            waiting += [(name, each) for each in reversed(at)]
        elif isinstance(at, Mapping) and isinstance(at.get("quote"), str):
            yield name, at  # type: ignore[misc]  # a mapping with these fields
        elif isinstance(at, Mapping):
            waiting += [(f"{name}.{field}".strip("."), each) for field, each in reversed([*at.items()])]


def changed(sources: Sources, change: Callable[[ValueSource], ValueSource]) -> Sources:
    """Return `sources` after `change` was applied to each source that has a quote."""
    if isinstance(sources, list):
        return [changed(each, change) for each in sources]
    if not isinstance(sources, Mapping):
        return sources
    if isinstance(sources.get("quote"), str):
        return change(sources)  # type: ignore[arg-type]  # a mapping with these fields
    return {name: changed(each, change) for name, each in sources.items()}
