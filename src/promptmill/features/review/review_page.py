"""The page of a review. It shows one row at a time, keys choose the label, and decisions are saved as a CSV file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from promptmill.core.values import json_text
from promptmill.core.wording import cut
from promptmill.features.review.reviewed import KEY, LABEL, NO_LABEL, ROW, Review, write_workbook
from promptmill.jobs.export.workbook_xml import LONGEST_CELL
from promptmill.pages import page
from promptmill.pages.page import Report

_MOST_VALUES = 20  # buttons of a field; a person can also type a value
_TEMPLATE = Path(__file__).with_name("review.html")
PAGES, WORKBOOK = (".html", ".htm"), ".xlsx"
"""The suffixes of review files. Excel would open a .csv file and run texts that begin with `=`."""


def saved_as(found: Review) -> str:
    """Return the name of the file in which the page saves decisions."""
    return f"{found.job_id}.decisions.csv"


def write(target: Path, found: Review, command: str) -> Report | None:
    """Write a review to a new workbook, or to a page whose report is returned. Raises `PromptmillError`.

    The page shows `command`, which stores the decisions.
    """
    if target.suffix.lower() == WORKBOOK:
        write_workbook(target, found)
        return None
    return _write_page(target, found, command)


def _write_page(target: Path, found: Review, command: str) -> Report:
    """Write the page of a review atomically."""
    title = f"Review: {found.title}"
    page.check(target, title)
    data = {
        "job": found.job_id,
        "labels": list(found.labels),
        "columns": [ROW, LABEL, KEY],
        "no_label": NO_LABEL,
        "saved": saved_as(found),
        "command": command,
        "rows": [
            {
                "number": row.number,
                "why": row.why,
                "score": row.score_words,
                "answer": cut(row.answer, LONGEST_CELL),
                "label": row.label,
                "own": [[name, cut(text, LONGEST_CELL)] for name, text in row.own.items() if text],
                "answers": [[name, cut(text, LONGEST_CELL)] for name, text in row.answers.items()],
                "asked": cut(row.asked, LONGEST_CELL),
                "key": row.key,
                "fields": [
                    [name, [[value, where, cut(_words(value), LONGEST_CELL)] for value, where in values[:_MOST_VALUES]]]
                    for name, values in row.fields.items()
                ],
            }
            for row in found.rows
        ],
    }
    page.put(target, page.html_of(_TEMPLATE.read_text(encoding="utf-8"), title, data))
    return Report(target, len(found.rows), len(found.rows))


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)
