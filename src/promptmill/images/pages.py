"""Finds out whether an image file is complete, and which pages a TIFF file has. No pixel is decoded."""

from __future__ import annotations

import struct

from promptmill.core.bounds import MOST_PDF_PAGES

_NO_LENGTH = frozenset({0x01, 0xD8, *range(0xD0, 0xD8)})  # markers in a JPEG file that have no length and no content
_SCAN = 0xDA
_REDUCED = 254  # the tag of a page's kind; its lowest bit marks a smaller copy of another page


def is_cut_off(data: bytes) -> bool:
    """Return whether the end of a JPEG, PNG, GIF or WebP file may be missing. (Some programs write no end mark.)"""
    if data.startswith(b"\x89PNG"):
        return _is_png_cut(data)
    if data.startswith(b"RIFF"):
        return len(data) < 12 or int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data.startswith(b"GIF"):
        return not data.rstrip(b"\0").endswith(b";")
    if data.startswith(b"\xff\xd8"):
        at = 2
        while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _SCAN:
            kind = data[at + 1]
            at += 1 if kind == 0xFF else 2 if kind in _NO_LENGTH else 2 + struct.unpack_from(">H", data, at + 2)[0]
        return data.find(b"\xff\xd9", at) < 0
    return False


def _is_png_cut(data: bytes) -> bool:
    at = 8
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            return False
        at += 12 + int(size)
    return True


def tiff_pages(data: bytes) -> list[int]:
    """Return the page numbers of a TIFF file, from 1. The list has at most one page more than a request allows.

    Images that are smaller copies of a page are left out. If the file's structure is unknown, return `[1]`.
    """
    order = "<" if data.startswith(b"II") else ">"
    is_big = data[2:4] in {b"+\0", b"\0+"}
    count_form, entry, offset_form = ("Q", 20, "Q") if is_big else ("H", 12, "I")
    pages, seen, number = list[int](), set[int](), 0
    try:
        (at,) = struct.unpack_from(order + offset_form, data, 8 if is_big else 4)
        while at and at not in seen and len(pages) <= MOST_PDF_PAGES:
            seen.add(at)
            number += 1
            (count,) = struct.unpack_from(order + count_form, data, at)
            first = at + struct.calcsize(count_form)
            tag, _, _, kind = struct.unpack_from(f"{order}HH{offset_form}I", data, first)
            if not (count and tag == _REDUCED and kind & 1):
                pages.append(number)
            (at,) = struct.unpack_from(order + offset_form, data, first + entry * count)
    except struct.error:
        pass
    return pages or [1]
