"""An image → a small JPEG of a bounded size, or none."""

from __future__ import annotations

import base64
import io
import os

import pytest
from PIL import Image

from promptmill.images.load import ImageRules
from promptmill.images.thumbnails import thumbnail
from promptmill.system.call_files import FileRule


def _source(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _size(text: str | None) -> tuple[int, int]:
    with Image.open(io.BytesIO(base64.b64decode(text or ""))) as image:
        assert image.format == "JPEG"
        return image.size


@pytest.mark.parametrize(("most", "side"), [(None, 160), (20_000, 160), (10_000, 112), (8_000, 80)])
def test_noise_is_made_smaller_until_it_fits(most, side):
    noise = _source(Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)))
    wide = _source(Image.frombytes("RGB", (160, 160), os.urandom(3 * 160 * 160)))
    assert _size(thumbnail(noise, ImageRules(), most)) == (side, side)
    assert len(thumbnail(wide, ImageRules(), most) or "") <= (most or 20_000)


def test_an_image_that_does_not_fit_is_none():
    assert thumbnail(_source(Image.new("RGB", (20, 20))), ImageRules(), 100) is None


def test_an_image_of_the_web_and_one_outside_the_folders_are_none(tmp_path, upstream):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    inside, outside = (ImageRules(FileRule((folder,))) for folder in (tmp_path, tmp_path / "other"))
    assert _size(thumbnail(str(tmp_path / "a.png"), inside)) == (20, 20)
    assert thumbnail(str(tmp_path / "a.png"), outside) is None
    assert thumbnail(str(tmp_path / "gone.png"), inside) is None
    assert thumbnail(f"{upstream.url}/a.png", inside) is None
    assert not upstream.seen


def test_an_image_whose_pixels_are_damaged_is_none():
    out = io.BytesIO()
    Image.frombytes("RGB", (300, 300), os.urandom(270_000)).save(out, "PNG")
    data = bytearray(out.getvalue())
    second = data.index(b"IDAT", data.index(b"IDAT") + 4)
    data[second : second + 4] = b"\0\0\0\0"  # Pillow raises a SyntaxError
    assert thumbnail(f"data:image/png;base64,{base64.b64encode(data).decode()}", ImageRules()) is None
