"""Finds the long beginnings that requests share, so that the provider's prompt cache can be used.

A shared beginning may end only where the structure of a request allows: at the end of a message and, in a plain
template, at the end of the text after a field:

    system prompt │ Answer from this text: {{document}} Question: │{{question}}
                  └ all rows                                      └ the rows with this document

Of the beginnings that a row shares with another row of the same window, the longest counts. The rows of a window are
sent group by group, in the order of the groups' first rows. Short rows keep their order, and so do windows whose first
rows share no beginning."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from promptmill.core.errors import PromptmillError
from promptmill.core.request import Shared
from promptmill.jobs.rows.row_questions import RowRequests

Row = TypeVar("Row")

WINDOW_ROWS, WINDOW_BYTES = 2048, 16 << 20
_LONGEST_CHARACTER = 4  # bytes in UTF-8
_LOOKED_AT = 32
"""How many rows are checked first in a page. If these share no beginnings, the other rows are not checked."""


def beginnings(
    requests: RowRequests, n: int, line: bytes | None, cells: bytes, *, least: int, model: str = ""
) -> list[Shared]:
    """Return the beginnings of a row that other rows may share, the shortest first; `[]` for an invalid row.

    `least`: the length, in bytes, of the shortest beginning to return.
    """
    try:
        pieces = requests.pieces(n, line, cells)
    except PromptmillError:
        return []
    if sum(map(len, pieces)) * _LONGEST_CHARACTER < least:
        return []
    digest, characters, size, shared = hashlib.blake2b(model.encode(), digest_size=16), 0, 0, list[Shared]()
    for piece in pieces:
        written = piece.encode("utf-8", "surrogatepass")
        digest.update(written)
        characters, size = characters + len(piece), size + len(written)
        if size >= least:
            shared.append(Shared(characters, digest.hexdigest(), size))
    return shared


def in_groups(
    pages: Iterator[list[Row]],
    look: Callable[[Row], list[Shared]],
    size: Callable[[Row], int],
    least: int = 2,
    *,
    reorders: bool,
) -> Iterator[list[tuple[Row, Shared | None]]]:
    """Yield rows in pages, each row with the prompt's beginning that it shares. Rows that share one follow each other.

    `look` returns the beginnings of a row, and `size` the row's size in bytes. A beginning counts as shared if at least
    `least` rows have it. Without `reorders`, the rows keep their order.
    """
    window, room = list[Row](), WINDOW_BYTES
    for page in pages:
        if not window and not _repeated(map(look, page[:_LOOKED_AT])):
            yield [(row, None) for row in page]
            continue
        window += page
        room -= sum(map(size, page))
        if len(window) >= WINDOW_ROWS or room < 0 or not reorders:
            yield _grouped(window, look, least, reorders=reorders)
            window, room = [], WINDOW_BYTES
    if window:
        yield _grouped(window, look, least, reorders=reorders)


def _grouped(
    rows: Sequence[Row], look: Callable[[Row], list[Shared]], least: int, *, reorders: bool
) -> list[tuple[Row, Shared | None]]:
    shared_of_rows = [look(row) for row in rows]
    keys = _repeated(shared_of_rows, least)
    groups: dict[str, list[tuple[Row, Shared | None]]] = {}
    for row, own in zip(rows, shared_of_rows, strict=True):
        shared = next((one for one in reversed(own) if one.key in keys), None)
        groups.setdefault(shared.key if shared and reorders else "", []).append((row, shared))
    return [entry for group in groups.values() for entry in group]


def _repeated(shared_of_rows: Iterable[list[Shared]], least: int = 2) -> set[str]:
    """Return the keys of the beginnings that at least `least` rows have."""
    times = Counter(one.key for own in shared_of_rows for one in own)
    return {key for key, count in times.items() if count >= least}
