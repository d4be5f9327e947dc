"""Reads the web pages that an answer cites, and takes the marks of citations out of its text.

A reply names pages in one of three ways, of which the first counts: `search_results`, a list to which numbers in the
text refer (Perplexity); `annotations` of the message, which say what the text cites (OpenAI's chat completions, to
which the dialects convert citations of other APIs); `citations`, a list of all pages that were read (xAI, gateways).

Formats: the types of openai 3.57.0 and perplexityai; docs.x.ai/developers/tools/citations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import orjson

from promptmill.core.bounds import LONGEST_SOURCE, MOST_SOURCES
from promptmill.core.sources import Source
from promptmill.core.values import JsonDict, JsonObject

LISTS = frozenset({"search_results", "citations"})
"""The fields of a reply with lists of pages."""
SEARCHING = frozenset({"openai", "anthropic", "google", "perplexity"})
"""The providers whose replies name pages only of their own search; others pass on what a server in between names."""
# OpenAI's models mark a citation by private characters (lidge-jun/opencodex#3150): U+E200 "cite" U+E202 "turn0search0"
# U+E201. Without these characters "citeturn0search0" is left. Assistants and gpt-oss write 【4:0†source】.
_MARK = re.compile(
    r"[ \t]?(?:\ue200[a-z_]{1,20}(?:\ue202[^\ue200-\ue202]{0,200})*\ue201"
    r"|(?<![\w`])cite(?:turn\d{1,3}[a-z]{3,10}\d{1,3})+(?![\w`])"
    r"|【\d{1,3}(?::\d{1,3})?†[^【】\n]{0,80}】)"
)
# OpenAI adds it to the cited URLs, also in the text.
_TRACKED = re.compile(r"(\?)utm_source=openai&|[?&]utm_source=openai(?![\w.%&-])|&utm_source=openai(?=&)")
# a number, or code, in which a number is no citation
_NUMBER = re.compile(r"(?s)(```|~~~).*?(?:\1|\Z)|`[^`\n]*`|(?<!\[)\[(?P<number>\d{1,3})\](?![(\]])")
_WEB = re.compile(r"(?i)https?://[^\s\x00-\x1f]+")


def url_citation(url: object, title: object) -> JsonDict:
    """Return a citation of a page, as an element of a message's `annotations`."""
    return {"type": "url_citation", "url_citation": {"url": url, "title": title}}


class _Page(NamedTuple):
    """A page that an answer cites."""

    number: int
    """The number by which the text refers to it; 0: none."""
    url: str
    """As the reply has it."""
    title: str


class Citations(NamedTuple):
    """The pages that a reply names, in its order."""

    pages: Sequence[_Page]

    @property
    def sources(self) -> list[Source] | None:
        """The pages, each once; None without pages."""
        found: dict[str, Source] = {}
        for page in self.pages:
            url = _untracked(page.url)
            if len(found) < MOST_SOURCES:
                found.setdefault(url, {"url": url, "title": page.title})
        return [*found.values()] or None

    def renumbered(self, text: str) -> str:
        """Return a text whose numbers refer to the sources, from 1. Numbers in code and JSON are no citations."""
        places: dict[str, int] = {}
        numbers = {
            str(page.number): str(places.setdefault(_untracked(page.url), len(places) + 1))
            for page in self.pages
            if page.number
        }
        if all(number == new for number, new in numbers.items()):
            return text
        try:
            orjson.loads(text)
        except orjson.JSONDecodeError:
            return _NUMBER.sub(
                lambda match: f"[{numbers.get(match['number'], match['number'])}]" if match["number"] else match[0],
                text,
            )
        return text

    def unmarked(self, text: str, *, is_openai: bool) -> str:
        """Return the text without OpenAI's marks: those of citations, if the reply is of OpenAI, and in cited URLs."""
        tracked = {page.url[: match.start()] for page in self.pages if (match := _TRACKED.search(page.url))}
        return without_marks(text, tracked) if tracked or (is_openai and self.pages) else text


def read(payload: JsonObject, message: JsonObject) -> Citations:
    """Return the pages that an answer cites. `payload` is a chat completion."""
    pages = _pages(payload.get("search_results")) or _cited(message.get("annotations"))
    return Citations(pages or _pages(payload.get("citations")))


def without_marks(text: str, tracked: Set[str] = frozenset()) -> str:
    """Return the text of an answer without marks of citations, also in the URLs that begin with one of `tracked`.

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
            pages += _page(inner if isinstance(inner, Mapping) else one, 0)
    return pages


def _pages(listed: Any) -> list[_Page]:
    """Return the pages of a list, each with the number by which the text refers to it."""
    pages: list[_Page] = []
    for place, one in enumerate(listed if isinstance(listed, list) else (), 1):
        page = one if isinstance(one, Mapping) else {"url": one}
        number = page.get("id")
        pages += _page(page, number if type(number) is int else place)
    return pages


def _page(page: Mapping[str, Any], number: int) -> Iterator[_Page]:
    """Yield a page, unless its address is not of the web, such as `javascript:` or the name of a file."""
    url, title = page.get("url"), page.get("title")
    if not isinstance(url, str) or len(url) > LONGEST_SOURCE or not _WEB.fullmatch(url := url.strip()):
        return
    title = title.strip()[:LONGEST_SOURCE] if isinstance(title, str) else ""
    # xAI gives the number of the citation as its title
    yield _Page(number, url, "" if title.isdecimal() and len(title) < 4 else title)
