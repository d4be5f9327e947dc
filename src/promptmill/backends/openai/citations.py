"""Reads the web pages that an answer cites, and removes the marks of citations from its text.

A reply may name pages in three fields, and the first field with a page is read: `search_results`, a list to which
numbers in the text refer (Perplexity); `annotations` of the message, with the cited parts of the text (OpenAI, and
dialects that convert their citations to this format); `citations`, a list of all pages that were read (xAI, gateways).

Formats: the types of openai 3.57.0 and perplexityai; docs.x.ai/developers/tools/citations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import orjson

from promptmill.core.bounds import LONGEST_SOURCE, MOST_SOURCES
from promptmill.core.sources import ValueSource
from promptmill.core.values import JsonDict, JsonObject

LISTS = frozenset({"search_results", "citations"})
"""The fields of a reply that list pages."""
SEARCHING = frozenset({"openai", "anthropic", "google", "perplexity"})
"""The providers whose replies name only pages of their own search. Others may name pages that another server found."""
# OpenAI's models mark a citation by private characters (lidge-jun/opencodex#3150): U+E200 "cite" U+E202 "turn0search0"
# U+E201. If these characters are lost, "citeturn0search0" remains. Assistants and gpt-oss write 【4:0†source】.
_MARK = re.compile(
    r"[ \t]?(?:\ue200[a-z_]{1,20}(?:\ue202[^\ue200-\ue202]{0,200})*\ue201"
    r"|(?<![\w`])cite(?:turn\d{1,3}[a-z]{3,10}\d{1,3})+(?![\w`])"
    r"|【\d{1,3}(?::\d{1,3})?†[^【】\n]{0,80}】)"
)
# OpenAI adds this parameter to the URLs of citations, and to the same URLs in the text.
_TRACKED = re.compile(r"(\?)utm_source=openai&|[?&]utm_source=openai(?![\w.%&-])|&utm_source=openai(?=&)")
# matches numbers such as [1], [1, 3], [2-4] or [ref_1], and whole code blocks, because numbers in code are no citations
_NUMBERS = re.compile(
    r"(?s)(```|~~~).*?(?:\1|\Z)|`[^`\n]*`"
    r"|(?P<before>[ \t]?(?<!\[)[\[【](?:ref_)?)(?P<numbers>\d{1,3}(?:\s?[,;\u2013-]\s?\d{1,3}){0,9})"
    r"(?P<behind>[\]】])(?![(\]])"
)
_WIDEST = 10  # ranges with more numbers are no citations, and are slow to expand
_RANGE = re.compile(r"(\d+)(?:\s?[\u2013-]\s?(\d+))?")
_ID = re.compile(r"\[?(?:ref_)?(\d{1,9})\]?")
_WEB = re.compile(r"(?i)https?://[^\s\x00-\x1f]+")


def url_citation(url: object, title: object) -> JsonDict:
    """Return a citation of a page, as an element of a message's `annotations`."""
    return {"type": "url_citation", "url_citation": {"url": url, "title": title}}


class _Page(NamedTuple):
    """A page that a reply names."""

    url: str
    """The URL as in the reply; `""` if the page is not on the web."""
    title: str
    number: int | None = None
    """The page's number in the reply."""


class Citations(NamedTuple):
    """The pages that a reply names, in the reply's order."""

    pages: Sequence[_Page]
    has_numbers: bool
    """Whether numbers in the text refer to the pages."""

    @property
    def sources(self) -> list[ValueSource] | None:
        """The pages on the web, each once; None if there are none."""
        found: dict[str, ValueSource] = {}
        for page in self.pages:
            url = _untracked(page.url)
            if url and len(found) < MOST_SOURCES:
                found.setdefault(url, {"url": url, "title": page.title})
        return [*found.values()] or None

    def renumbered(self, text: str) -> str:
        """Return `text` with numbers that refer to the sources (from 1). Numbers in code and JSON are no citations.

        A number in `text` is a page's number in the reply, or the page's position if the reply numbers no pages. It is
        removed if its page is not on the web, or if it has no page but would refer to a source.
        """
        if not self.has_numbers:
            return text
        places: dict[str, int] = {}
        new = [places.setdefault(_untracked(page.url), len(places) + 1) if page.url else None for page in self.pages]
        given = [page.number for page in self.pages]
        used = {number for match in _NUMBERS.finditer(text) for number in _numbers(match)}
        is_given = None not in given and len({*given}) == len(given) and not used.isdisjoint(given)
        numbers = dict(zip(given if is_given else range(1, len(new) + 1), new, strict=True))
        changed = {number: numbers.get(number) for number in used if number in numbers or 0 < number <= len(places)}
        if all(number == source for number, source in changed.items()):
            return text
        try:
            orjson.loads(text)
        except orjson.JSONDecodeError:
            return _NUMBERS.sub(lambda match: _changed(match, changed), text)
        return text

    def unmarked(self, text: str, *, is_openai: bool) -> str:
        """Return the text without OpenAI's marks, if the reply is OpenAI's or cites URLs that OpenAI has marked."""
        tracked = {page.url[: match.start()] for page in self.pages if (match := _TRACKED.search(page.url))}
        return without_marks(text, tracked) if tracked or (is_openai and self.pages) else text


def read(payload: JsonObject, message: JsonObject) -> Citations:
    """Return the pages that an answer cites. `payload` is a chat completion."""
    cited = _cited(message.get("annotations"))
    results, read_pages = _pages(payload.get("search_results")), _pages(payload.get("citations"))
    if any(page.url for page in results) or not (cited or read_pages):
        return Citations(results, has_numbers=True)
    return Citations(cited, has_numbers=False) if cited else Citations(read_pages, has_numbers=True)


def _numbers(match: re.Match[str]) -> Iterator[int]:
    """Yield the numbers in a match of `_NUMBERS`."""
    for first, last in _RANGE.findall(match["numbers"] or ""):
        if int(last or first) - int(first) < _WIDEST:
            yield from range(int(first), int(last or first) + 1)


def _changed(match: re.Match[str], changed: Mapping[int, int | None]) -> str:
    """Return the text of a `_NUMBERS` match, with each number replaced by its value in `changed` (None removes it)."""
    numbers = [*_numbers(match)]
    new = [changed.get(number, number) for number in numbers]
    if new == numbers:
        return match[0]
    sources = dict.fromkeys(str(number) for number in new if number is not None)
    return f"{match['before']}{', '.join(sources)}{match['behind']}" if sources else ""


def without_marks(text: str, tracked: Set[str] = frozenset()) -> str:
    """Return a text without citation marks, and without OpenAI's parameter after the `tracked` URLs.

    >>> without_marks("Open (http://a.org/?utm_source=openai). \\ue200cite\\ue202turn0search0\\ue201", {"http://a.org/"})
    'Open (http://a.org/).'
    """
    if "\ue200" in text or "citeturn" in text or "†" in text:
        text = _MARK.sub("", text)
    if not tracked or "utm_source=openai" not in text:
        return text

    def replaced(match: re.Match[str]) -> str:
        end = match.start()
        start = text.rfind("http", max(0, end - LONGEST_SOURCE), end)
        return match[1] or "" if start >= 0 and text[start:end] in tracked else match[0]

    return _TRACKED.sub(replaced, text)


def _untracked(url: str) -> str:
    return _TRACKED.sub(lambda match: match[1] or "", url)


def _cited(annotations: Any) -> list[_Page]:
    pages: list[_Page] = []
    for one in annotations if isinstance(annotations, list) else ():
        if isinstance(one, Mapping) and one.get("type") == "url_citation":
            inner = one.get("url_citation")
            pages.append(_page(inner if isinstance(inner, Mapping) else one))
    return [page for page in pages if page.url]


def _pages(listed: Any) -> list[_Page]:
    """Return all pages of a list, because numbers in the text may also refer to pages that are not on the web."""
    return [
        _page(page if isinstance(page, Mapping) else {"url": page})
        for page in (listed if isinstance(listed, list) else ())
    ]


def _page(page: Mapping[str, Any]) -> _Page:
    """Return a page. A page whose address is, for example, `javascript:` or a file name is not on the web."""
    url, title, number = page.get("url"), page.get("title"), page.get("id")
    url = url.strip() if isinstance(url, str) and len(url) <= LONGEST_SOURCE else ""
    title = title.strip()[:LONGEST_SOURCE] if isinstance(title, str) else ""
    if isinstance(number, str) and (match := _ID.fullmatch(number)):
        number = int(match[1])
    return _Page(
        url if _WEB.fullmatch(url) else "",
        # xAI sends the number of the citation as the page's title
        "" if title.isdecimal() and len(title) < 4 else title,
        number if type(number) is int else None,
    )
