"""The rows of a group as text: a list whose entries are rows.

    - Loud at night.              - date: 2026-03-01
    - The breakfast was good.       text: Loud at night.
      I would come again.             We did not sleep.

A line without indentation begins a row; further lines of a cell are indented. Empty cells and blank lines are left out.
Rows of several lines have a blank line between them, so that `split` cuts a long group between two rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from promptmill.core.values import cell_text
from promptmill.jobs.rows.row_lines import emptiness

_INDENT = "  "


def entry_of_cell(value: Any) -> str:
    """Return the entry of a row whose only cell is `value`; `""` for an empty cell.

    >>> entry_of_cell("Good.\\n\\nI would come again."), entry_of_cell(None)
    ('- Good.\\n  I would come again.', '')
    """
    return _entry(_lines(value))


def entry_of_cells(cells: Mapping[str, Any]) -> str:
    """Return the entry of a row, with the names of its columns; `""` if all cells are empty.

    >>> entry_of_cells({"date": "2026-03-01", "stars": 4, "text": "Loud.\\nVery loud."})
    '- date: 2026-03-01\\n  stars: 4\\n  text: Loud.\\n    Very loud.'
    """
    lines = list[str]()
    for name, value in cells.items():
        if of_cell := _lines(value):
            lines += [f"{name}: {of_cell[0]}", *(f"{_INDENT}{line}" for line in of_cell[1:])]
    return _entry(lines)


def joined(entries: Sequence[str]) -> str:
    """Return the text of all entries.

    >>> joined(["- Loud.", "- Good."]), joined(["- Loud.\\n  Very.", "- Good."])
    ('- Loud.\\n- Good.', '- Loud.\\n  Very.\\n\\n- Good.')
    """
    has_long = any("\n" in entry for entry in entries)
    return ("\n\n" if has_long else "\n").join(entries)


def _entry(lines: Sequence[str]) -> str:
    text = f"\n{_INDENT}".join(lines)
    return f"- {text}" if text else ""


def _lines(value: Any) -> list[str]:
    """Return the lines of a cell that are not blank."""
    if emptiness(value):
        return []
    text = cell_text(value)
    return [text] if text.isascii() and text.isprintable() else [line for line in text.splitlines() if line.strip()]
