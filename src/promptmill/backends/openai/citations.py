"""Reads the web pages that an answer cites, and takes the marks of citations out of its text.

A reply names pages in one of three ways, of which the first counts: `search_results`, a list to which numbers in the
text refer (Perplexity); `annotations` of the message, which say what the text cites (OpenAI's chat completions, to
which the dialects convert citations of other APIs); `citations`, a list of all pages that were read (xAI, gateways).

Formats: the types of openai 3.57.0 and perplexityai; docs.x.ai/developers/tools/citations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from promptmill.core.sources import Source
from promptmill.core.values import JsonDict, JsonObject

LISTS = frozenset({"search_results", "citations"})
"""The fields of a reply with lists of pages."""
# OpenAI's models mark a citation by private characters (lidge-jun/opencodex#3150): U+E200 "cite" U+E202 "turn0search0"
# U+E201. Without these characters "citeturn0search0" is left. Assistants and gpt-oss write 【4:0†source】.
_MARK = re.compile(
    r"[ \t]?(?:\ue200[a-z_]{1,20}(?:\ue202[^\ue200-\ue202]{0,200})*\ue201"
    r"|(?<![\w`])cite(?:turn\d{1,3}[a-z]{3,10}\d{1,3})+(?![\w`])"
    r"|【\d{1,3}(?::\d{1,3})?†[^【】\n]{0,80}】)"
)
# OpenAI adds it to every cited URL, also in the text.
_TRACKED = re.compile(r"(\?)utm_source=openai&|[?&]utm_source=openai(?![\w.%&-])|&utm_source=openai(?=&)")
_NUMBER = re.compile(r"(?<!\[)\[(\d{1,3})\](?![(\]])")


def url_citation(url: object, title: object) -> JsonDict:
    """Return a citation of a page, as an element of a message's `annotations`."""
    return {"type": "url_citation", "url_citation": {"url": url, "title": title}}


def read(payload: JsonObject, message: JsonObject, text: str) -> tuple[list[Source] | None, str]:
    """Return the pages that an answer cites, each once, in their order; None without pages. Return also the text,
    whose numbers refer to these pages. `payload` is a chat completion."""
    pages = _pages(payload.get("search_results"))
    if not pages and (cited := [*_cited(message.get("annotations"))]):
        return [*_once(cited)], text
    pages = pages or _pages(payload.get("citations"))
    return [*_once(page for _, page in pages)] or None, _renumbered(text, pages) if pages else text


def _once(pages: Iterable[Source]) -> Iterable[Source]:
    """Return the first of the pages at each URL."""
    found: dict[str, Source] = {}
    for page in pages:
        found.setdefault(page["url"], page)
    return found.values()


def without_marks(text: str) -> str:
    """Return the text of an answer without marks of citations.

    >>> without_marks("Open (a.org/?utm_source=openai). \\ue200cite\\ue202turn0search0\\ue201")
    'Open (a.org/).'
    """
    if "\ue200" in text or "citeturn" in text or "†" in text:
        text = _MARK.sub("", text)
    return _untracked(text) if "utm_source=openai" in text else text


def _untracked(text: str) -> str:
    return _TRACKED.sub(lambda match: match[1] or "", text)


def _cited(annotations: Any) -> Iterator[Source]:
    for one in annotations if isinstance(annotations, list) else ():
        if isinstance(one, Mapping) and one.get("type") == "url_citation":
            inner = one.get("url_citation")
            yield from _page(inner if isinstance(inner, Mapping) else one)


def _pages(listed: Any) -> list[tuple[int, Source]]:
    """Return the pages of a list, each with the number by which the text refers to it."""
    pages: list[tuple[int, Source]] = []
    for place, one in enumerate(listed if isinstance(listed, list) else (), 1):
        page = one if isinstance(one, Mapping) else {"url": one}
        number = page.get("id")
        pages += [(number if type(number) is int else place, source) for source in _page(page)]
    return pages


def _page(page: Mapping[str, Any]) -> Iterator[Source]:
    url, title = page.get("url"), page.get("title")
    if not isinstance(url, str) or not url.strip():
        return
    title = title.strip() if isinstance(title, str) else ""
    # xAI gives the number of the citation as its title
    yield {"url": _untracked(url.strip()), "title": "" if title.isdecimal() and len(title) < 4 else title}


def _renumbered(text: str, pages: Sequence[tuple[int, Source]]) -> str:
    """Return a text whose numbers refer to the pages as they are returned: each once, from 1. JSON is not changed,
    because its lists may have numbers."""
    places: dict[str, int] = {}
    numbers = {str(number): str(places.setdefault(page["url"], len(places) + 1)) for number, page in pages}
    if all(number == new for number, new in numbers.items()):
        return text
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return _NUMBER.sub(lambda match: f"[{numbers.get(match[1], match[1])}]", text)
    return text
