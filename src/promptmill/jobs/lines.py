"""The lines of a file, block by block, with their places; memory for one block and one line."""

from __future__ import annotations

from typing import NamedTuple

from promptmill.jobs.disk import RandomFile

LONGEST_LINE = 256 * 1024 * 1024
_BLOCK = 128 * 1024


class Line(NamedTuple):
    """Line `row` (from 0) without its line feed. `data` is None when it is longer than `LONGEST_LINE`."""

    row: int
    offset: int
    length: int
    data: bytes | None

    @property
    def blank(self) -> bool:
        """Whether it holds nothing but white space: no row, though it counts as a line."""
        return self.data is not None and (not self.length or self.data.isspace())


class Lines:
    """Reads on from the beginning, or from a line whose place is known. Blocks: call it off the event loop."""

    def __init__(self, file: RandomFile, row: int = 0, offset: int = 0) -> None:
        self._file = file
        self._row = row
        self._offset = offset

    def read(self) -> list[Line]:
        """Return the next lines, about 128 KiB of them and at least one; `[]` at the end."""
        block = self._file.read_at(self._offset, _BLOCK)
        end = block.rfind(b"\n") + 1
        if not end:
            return self._read_long(block) if block else []
        found = []
        row, offset = self._row, self._offset
        for data in block[: end - 1].split(b"\n"):
            length = len(data)
            found.append(Line(row, offset, length, data))
            row += 1
            offset += length + 1
        self._row, self._offset = row, offset
        return found

    def skip(self, rows: int) -> None:
        """Go on `rows` lines further down, as fast as the disk allows."""
        while rows > 0 and (block := self._file.read_at(self._offset, _BLOCK)):
            count = block.count(b"\n")
            if count > rows:
                end = 0
                for _ in range(rows):
                    end = block.index(b"\n", end) + 1
                self._row, self._offset = self._row + rows, self._offset + end
                return
            if not count:
                self._read_long(block)
                rows -= 1
                continue
            self._row += count
            self._offset += block.rfind(b"\n") + 1
            rows -= count

    def _read_long(self, block: bytes) -> list[Line]:
        """Return the one line that begins here and is not over within a block, or is the last one."""
        parts: list[bytes] = []
        length = 0
        while block and (stop := block.find(b"\n")) < 0:
            length += len(block)
            if length <= LONGEST_LINE:
                parts.append(block)
            block = self._file.read_at(self._offset + length, _BLOCK * 8)
        if block:
            parts.append(block[:stop])
            length += stop
        line = Line(self._row, self._offset, length, b"".join(parts) if length <= LONGEST_LINE else None)
        self._row += 1
        self._offset += length + bool(block)
        return [line]
