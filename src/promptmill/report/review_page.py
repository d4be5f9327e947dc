"""The page of a review: a row at a time, and keys that choose its label. The decisions are saved as a CSV file."""

from __future__ import annotations

import shlex
from pathlib import Path

from promptmill.core.errors import Code, PromptmillError
from promptmill.core.wording import cut
from promptmill.jobs import disk
from promptmill.jobs.manage.review import KEY, LABEL, ROW, Review
from promptmill.report import page
from promptmill.report.page import Report

_TEMPLATE = Path(__file__).with_name("review.html")
_LONGEST = 20_000  # characters of a text
_MOST_LABELS = 100


def write(target: Path, found: Review) -> Report:
    """Write the page of a review to `target`, all at once. Raises `PromptmillError`."""
    title = f"Review: {found.title}"
    page.check(target, title)
    saved = f"{found.job_id}.decisions.csv"
    take = shlex.join(["promptmill", "review", found.job_id, "--take", saved])
    gold = shlex.join(["promptmill", "compare", found.job_id, "--by", "variant", "--gold", f"{saved}:{LABEL}"])
    data = {
        "job": found.job_id,
        "labels": list(found.labels[:_MOST_LABELS]),
        "columns": [ROW, LABEL, KEY],
        "saved": saved,
        "command": take if found.can_take else gold,
        "rows": [
            {
                "number": row.number,
                "why": row.why,
                "score": row.score,
                "answer": cut(row.answer, _LONGEST),
                "own": [[name, cut(text, _LONGEST)] for name, text in row.own.items() if text],
                "answers": [[name, cut(text, _LONGEST)] for name, text in row.answers.items()],
                "asked": cut(row.asked, _LONGEST),
                "key": row.key,
            }
            for row in found.rows
        ],
    }
    try:
        page.put(target, page.html_of(_TEMPLATE, title, data))
    except OSError as error:
        raise PromptmillError(Code.STORAGE, f"The page {target} cannot be written: {disk.why(error)}.", "") from None
    return Report(target, len(found.rows), len(found.rows))
