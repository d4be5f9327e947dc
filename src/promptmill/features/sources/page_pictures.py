"""Pictures of the pages of PDFs on which an answer has quotes, for reports and for the page in a chat.

The pictures have no boxes: the report or the page in the chat draws the boxes of the quotes, from `sources`.
"""

from __future__ import annotations

from typing import Any, BinaryIO

from typing_extensions import TypedDict

from promptmill.core.errors import PromptmillError
from promptmill.core.request import FilePart
from promptmill.core.sources import Sources, leaves
from promptmill.images import pdf
from promptmill.images.load import ImageRules, read_file

_PICTURES = "promptmill.features.sources.page_boxes:pictures"
_SIDE = 1000  # pixels of the longer side: enough to read print of 8 points
_MOST_PAGES = 3  # pages displayed for a row: the quotes of a form or an invoice are on fewer pages


class PagePicture(TypedDict):
    """A page of a PDF as it is displayed."""

    page: int
    """The number of the page, from 1."""
    width: float
    """The width in points, as in `Box`."""
    height: float
    png: str
    """The picture, in base64."""


def page_pictures(sources: Sources, file: str, rules: ImageRules) -> list[PagePicture]:
    """Return the first pages of the PDF `file` that have boxes of quotes; `[]` if there are none, or if the file is
    refused by `rules` or unreadable. For an agent, pages that may hold keys or passwords are left out. Blocks."""
    pages = sorted({box["page"] for _, source in leaves(sources) for box in source.get("box", ())})[:_MOST_PAGES]

    def read(opened: BinaryIO, _: str) -> list[Any]:
        return list(pdf.READER.asked(opened, _PICTURES, {"pages": pages, "side": _SIDE})["pictures"])

    try:
        pictures = read_file(FilePart(file, "pdf"), rules, read) if pages and file else []
    except (PromptmillError, pdf.PdfError):
        return []
    finder = rules.files.finder if rules.files.is_guarded else None
    return [
        PagePicture(page=page, width=width, height=height, png=png)
        for page, width, height, png, text in pictures
        if finder is None or not finder.find(text.encode("utf-8", "replace"))
    ]
