"""Decoding has a bound in bytes, for all threads together."""

from __future__ import annotations

import threading
from typing import Literal

import pytest
from PIL import Image

from promptmill.images.load import DecodeMemory, ImageRules, load_image


def test_who_needs_more_than_is_free_waits_until_it_is():
    memory = DecodeMemory(100)
    inside, go, order = threading.Event(), threading.Event(), []

    def first():
        with memory.reserved(60):
            inside.set()
            go.wait()
            order.append("first")

    def second():
        inside.wait()
        go.set()
        with memory.reserved(60):
            order.append("second")

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order == ["first", "second"]


def test_what_is_larger_than_the_limit_is_decoded_alone_and_an_error_frees_its_part():
    memory = DecodeMemory(100)
    with pytest.raises(ValueError, match="broken"), memory.reserved(1000):
        raise ValueError("broken")
    with memory.reserved(100):
        pass


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
