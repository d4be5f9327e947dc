"""PDF files as other programs write them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase.pdfmetrics import registerFont
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

PICTURE = ImageReader(Image.new("RGB", (20, 20), "gray"))
VERA = "Vera"
"""A font that is embedded: the file has the glyphs of its letters, and a table of the characters."""


def pages_of(path: Path, *draw: Callable[[Canvas], None]) -> Path:
    """Write a page for each function, which draws it."""
    registerFont(TTFont(VERA, "Vera.ttf"))
    canvas = Canvas(str(path), pageCompression=0)
    for draw_page in draw:
        draw_page(canvas)
        canvas.showPage()
    canvas.save()
    return path


def pdf_of_texts(path: Path, texts: Sequence[str], password: str = "") -> Path:
    """Write a page for each text."""
    canvas = Canvas(str(path), encrypt=StandardEncryption(password) if password else None)
    for text in texts:
        canvas.drawString(72, 720, text)
        canvas.showPage()
    canvas.save()
    return path


def scan(path: Path, pages: int = 1) -> Path:
    """Write pages that are images, without text."""
    image = Image.new("RGB", (200, 300), "white")
    out = io.BytesIO()
    image.save(out, "PDF", save_all=True, append_images=[image] * (pages - 1))
    path.write_bytes(out.getvalue())
    return path
