"""PDF files as other programs write them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfgen.canvas import Canvas


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
