"""Keeps the texts of many rows in a temporary file, so that each text takes only 16 bytes of memory."""

from __future__ import annotations

import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import overload

from promptmill.core.errors import Code, PromptmillError
from promptmill.files import disk

_MOST_SHORT = 4096
"""The number of different short texts that are kept in memory: enough for labels. Further texts are in the file."""
_SHORT = 200  # characters
_WRITTEN = 1 << 20  # bytes that are written together
_SIZE_BITS = 28  # the bits of a code that hold the text's size in bytes; the others hold its position in the file
_MOST_PLACE = 1 << 63 - _SIZE_BITS


class TextStore:
    """Keeps texts, each under a code: a number from 0 for texts in memory (0: `""`), below 0 for texts in the file."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {"": 0}
        self._texts = [""]
        self._file = tempfile.TemporaryFile(prefix="promptmill-")  # noqa: SIM115 (open while texts are read)
        weakref.finalize(self, self._file.close)
        self._unwritten = bytearray()
        self._written = 0

    def code(self, text: str) -> int:
        """Keep a text, and return its code. Raises `PromptmillError` (`storage`) if the disk is full."""
        if (known := self._numbers.get(text)) is not None:
            return known
        if len(self._texts) < _MOST_SHORT and len(text) <= _SHORT:
            self._numbers[text] = len(self._texts)
            self._texts.append(text)
            return self._numbers[text]
        content, place = text.encode("utf-8", "surrogatepass"), self._written + len(self._unwritten)
        if len(content) >> _SIZE_BITS or place >= _MOST_PLACE:  # the text has 256 MiB, or the file has 32 GiB
            self._texts.append(text)
            return len(self._texts) - 1
        self._unwritten += content
        if len(self._unwritten) >= _WRITTEN:
            self._write()
        return ~(place << _SIZE_BITS | len(content))

    def _write(self) -> None:
        try:
            self._file.seek(self._written)
            self._file.write(self._unwritten)
            self._file.flush()
        except OSError as error:
            folder = tempfile.gettempdir()
            problem = f"The answers cannot be written to {folder}: {disk.why(error)}. Free space there, or set TMPDIR."
            raise PromptmillError(Code.STORAGE, problem, "") from None
        self._written += len(self._unwritten)
        self._unwritten.clear()

    def text(self, code: int) -> str:
        """Return the text with a code."""
        if code >= 0:
            return self._texts[code]
        place, size = ~code >> _SIZE_BITS, ~code & (1 << _SIZE_BITS) - 1
        if (at := place - self._written) >= 0:
            return self._unwritten[at : at + size].decode("utf-8", "surrogatepass")
        self._file.seek(place)
        return self._file.read(size).decode("utf-8", "surrogatepass")


class KeptTexts(Sequence[str]):
    """A sequence of texts in a `TextStore`."""

    def __init__(self, store: TextStore, texts: Iterable[str] = ()) -> None:
        self._store = store
        self._codes, self.hashes = array("q"), array("q")
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Add a text."""
        self._codes.append(self._store.code(text))
        self.hashes.append(hash(text))

    def at(self, places: Sequence[int]) -> KeptTexts:
        """Return the texts with these indices; `""` for the index -1."""
        chosen = KeptTexts(self._store)
        for its, all_ in ((chosen._codes, self._codes), (chosen.hashes, self.hashes)):
            its.extend(all_[place] if place >= 0 else 0 for place in places)  # code and hash are 0 for ""
        return chosen

    def changed(self, change: Callable[[str], str]) -> KeptTexts:
        """Return the texts, each changed by `change`."""
        return KeptTexts(self._store, map(change, self))

    def given(self) -> Iterator[bool]:
        """Yield, for each text, whether it is not `""`. No text is read."""
        return map(bool, self._codes)

    def __len__(self) -> int:
        return len(self._codes)

    def __iter__(self) -> Iterator[str]:
        return map(self._store.text, self._codes)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> KeptTexts: ...
    def __getitem__(self, at: int | slice) -> str | KeptTexts:
        return self.at(range(len(self))[at]) if isinstance(at, slice) else self._store.text(self._codes[at])
