"""`killed.py POINT[:N] bulk …`: the command line, ended with SIGKILL when it passes a point for the N-th time."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from promptmill.cli.main import main
from promptmill.core.feature import features, part
from promptmill.jobs.export import answered, output
from promptmill.jobs.store.database import JobDatabase


def passing(function: Callable[..., Any], before: str, after: str = "") -> Callable[..., Any]:
    """Return `function` between two points, whose names are `before` and `after`."""
    passed = itertools.count(1)

    def point(name: str) -> None:
        if name == NAME and next(passed) == NUMBER:
            os.kill(os.getpid(), signal.SIGKILL)

    def between(*given: Any, **named: Any) -> Any:
        point(before)
        found = function(*given, **named)
        point(after)
        return found

    return between


def passing_rows(function: Callable[..., Iterator[Any]], before: str) -> Callable[..., Iterator[Any]]:
    """Return `function`, which yields rows, with a point before each row."""
    row = passing(lambda found: found, before)

    def between(*given: Any, **named: Any) -> Iterator[Any]:
        return map(row, function(*given, **named))

    return between


def of_labels() -> Iterator[tuple[type, str, tuple[str, str]]]:
    """Yield the points of the feature `labels`."""
    if "labels" in features():
        work = part("promptmill.features.labels.sure_work:SureWork")
        student = part("promptmill.features.labels.student_answers:StudentAnswers")
        yield work, "_draw", ("before-draw", "after-draw")
        yield work, "_deliver", ("before-deliver", "after-deliver")
        yield student, "answer_sample", ("before-learn", "after-learn")
        yield student, "_answered", ("before-student", "after-student")


def of_batches() -> Iterator[tuple[Any, str, tuple[str, ...]]]:
    """Yield the points of batches, if that feature is installed."""
    if "batches" in features():
        stored = part("promptmill.features.batches.stored_batches")
        yield stored, "put", ("before-batch", "after-batch")
        yield stored, "add_rows", ("before-rows", "after-rows")
        yield stored, "keep_replies", ("before-replies", "after-replies")
        yield stored, "finish", ("before-finish", "after-finish")


if __name__ == "__main__":
    NAME, _, number = sys.argv[1].partition(":")
    NUMBER = int(number or 1)
    for owner, name, points in (
        (JobDatabase, "write", ("before-write", "after-write")),
        (JobDatabase, "put", ("before-put", "after-put")),
        *of_labels(),
        *of_batches(),
        (output, "publish", ("before-rename", "after-rename")),
    ):
        setattr(owner, name, passing(getattr(owner, name), *points))
    if "batches" in features():
        vars(part("promptmill.features.batches.batch_round"))["LIST_LAG_S"] = 0.3
    vars(output)["answered_rows"] = passing_rows(answered.answered_rows, "merging")
    sys.exit(main(sys.argv[2:]))
