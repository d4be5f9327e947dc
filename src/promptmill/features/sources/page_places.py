"""The place of a character of a PDF's text: its page, and its number in the text of that page."""

from __future__ import annotations

from promptmill.core.sources import ATTACHED, PAGE


def page_place(text: str, at: int, page: int = 1, offset: int = 0) -> tuple[int, int]:
    """Return the page of the character `at` of a text, and the number of the character in the text of that page.

    `page`, `offset`: the place of the first character of `text`. The text of a page begins after its `ATTACHED` line.

    >>> page_place("One.\\n\\f\\nTwo.", 9)
    (2, 2)
    """
    end = text.rfind(PAGE, 0, at)
    begin, offset = (0, offset) if end < 0 else (end + 2, 0)  # a line end follows `PAGE`
    if not offset and text.startswith(ATTACHED, begin):
        begin = text.find("\n\n", begin) + 2
    return page + text.count(PAGE, 0, at), offset + at - begin
