"""Where each row's record lies in the journal: one unsigned 64-bit number per row, 0 for none.

Made anew from the journal whenever a job is opened, and never trusted after that process has ended.
"""

from __future__ import annotations

import struct
from array import array
from collections import OrderedDict

from promptmill.jobs.disk import RandomFile

AGAIN = 1 << 63
"""Set in an entry whose row is to be done again; the rest still says where its last record lies."""
_ROWS = 1024
_ENTRY = struct.Struct("<Q")
_PAGE = _ROWS * _ENTRY.size
_MOST_PAGES = 64


class Index:
    """Reads and writes through a few pages, for rows that come in roughly their order. Not for several threads."""

    def __init__(self, file: RandomFile) -> None:
        self._file = file
        self._pages: OrderedDict[int, bytearray] = OrderedDict()
        self._dirty: set[int] = set()

    def get(self, row: int) -> int:
        """Return the entry of `row`."""
        page = self._page(row // _ROWS)
        entry: int = _ENTRY.unpack_from(page, row % _ROWS * _ENTRY.size)[0]
        return entry

    def set(self, row: int, entry: int) -> None:
        """Write the entry of `row`; others see it after `flush`."""
        number = row // _ROWS
        _ENTRY.pack_into(self._page(number), row % _ROWS * _ENTRY.size, entry)
        self._dirty.add(number)

    def clear(self) -> None:
        """Have no entry for any row. Raises `OSError`."""
        self._pages.clear()
        self._dirty.clear()
        self._file.truncate(0)

    def flush(self) -> None:
        """Hand all changes to the operating system. Raises `OSError`."""
        while self._dirty:
            number = next(iter(self._dirty))
            self._file.write_at(number * _PAGE, self._pages[number])
            self._dirty.discard(number)

    def _page(self, number: int) -> bytearray:
        page = self._pages.get(number)
        if page is not None:
            self._pages.move_to_end(number)
            return page
        if len(self._pages) >= _MOST_PAGES:
            oldest, gone = next(iter(self._pages.items()))
            if oldest in self._dirty:
                self._file.write_at(oldest * _PAGE, gone)
                self._dirty.discard(oldest)
            del self._pages[oldest]
        page = bytearray(self._file.read_at(number * _PAGE, _PAGE).ljust(_PAGE, b"\0"))
        self._pages[number] = page
        return page


def entries(file: RandomFile, first: int, count: int) -> array[int]:
    """Return the entries of `count` rows from row `first` as they were last flushed; for any thread or process."""
    size = _ENTRY.size
    found = array("Q")
    found.frombytes(file.read_at(first * size, count * size).ljust(count * size, b"\0")[: count * size])
    return found
