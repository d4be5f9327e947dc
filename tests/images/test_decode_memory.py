"""Images of sixteen bits."""

from __future__ import annotations

from typing import Literal

import pytest
from PIL import Image

from promptmill.images.load import ImageRules, load_image


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bits_become_their_upper_eight(tmp_path, mode):
    values = [0, 1, 255, 256, 257, 32_767, 32_768, 65_535]
    order: Literal["big", "little"] = "big" if mode == "I;16B" else "little"
    image = Image.frombytes(mode, (8, 1), b"".join(value.to_bytes(2, order) for value in values))
    image.save(tmp_path / "a.tiff")
    loaded = load_image(str(tmp_path / "a.tiff"), ImageRules())
    (tmp_path / "a.png").write_bytes(loaded.data)
    with Image.open(tmp_path / "a.png") as read:
        assert list(read.tobytes()) == [value >> 8 for value in values]
