"""The text of a PDF in a request. The model reads the PDF as a file; quotes are looked up in this text."""

from __future__ import annotations

from typing import BinaryIO

from promptmill.core.errors import input_error
from promptmill.core.request import FilePart
from promptmill.core.sources import PAGE
from promptmill.images import pdf
from promptmill.images.load import ImageRules, read_file


def pdf_text(part: FilePart, rules: ImageRules) -> str:
    """Return the text of a PDF, with `PAGE` after each page but the last. Blocks.

    Raises `PromptmillError` (`invalid_input` for a PDF without text, `missing_dependency`).
    """

    def read(file: BinaryIO, name: str) -> str:
        try:
            pages = [page.text for page in pdf.READER.contents(file)]
        except pdf.PdfError as error:
            raise input_error(f"{name} {error}; name a PDF that can be read.") from None
        if not any(pages):
            raise input_error(f"{name} has no text in which a quote could be looked up: it may be a scan.")
        return f"\n{PAGE}\n".join(pages)

    return read_file(part, rules, read)
