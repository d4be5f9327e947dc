"""The record of `review`: a command, a Python function and a tool."""

from __future__ import annotations

from typing import Any

from promptmill.features.review import MOST_REVIEWED, ROWS
from promptmill.features.verbs.record import option, shared
from promptmill.features.verbs.verb import Verb
from promptmill.options.option import Argument, Flag, Option

REVIEW = Verb(
    name="review",
    noun="review",
    work="promptmill.features.review.work:done",
    lines="promptmill.features.review.command:lines",
    examples="promptmill.features.review.command_examples:EXAMPLES",
    tool="promptmill.features.review.tool:TOOL",
    positional=["job"],
    options={
        "": [
            option(
                "job",
                str,
                "a job, or its output",
                "JOB",
                tool=Argument("job_id", "its id or output file", True, is_required=True),
            ),
            Option(
                "output",
                str,
                ".html or .xlsx; else a page, OUTPUT.review.html",
                flag=Flag("-o output", metavar="FILE"),
                argument=Argument(
                    "output_file", "also write all of them: .html, a page for the user, or .xlsx to fill in", True
                ),
            ),
            option(
                "rows",
                int,
                f"so many rows; else {ROWS}",
                "N",
                tool=Argument("", f"most rows (default {ROWS})", True, least=1, most=MOST_REVIEWED),
            ),
            option(
                "sample",
                int,
                "N rows at random instead, whose labels are right answers for compare",
                "N",
                tool=Argument(
                    "",
                    "draw so many rows at random instead; their labels can be `gold` of compare",
                    True,
                    least=1,
                    most=MOST_REVIEWED,
                ),
            ),
            option(
                "decisions",
                list[dict[str, Any]],
                "the user's `row`, `key`, `label`: `-` takes it back, an object changes only its fields",
                None,
                tool=Argument(is_common=True),
            ),
            option(
                "take",
                str,
                "store the labels of a review; nothing is sent",
                "FILE",
                tool=Argument("", "the same from a file that this tool wrote, filled in by the user", True),
            ),
            shared("choices", tool=Argument("", "all labels, also those that are no answer")),
            option("open", bool, "show the page in the browser", default=False),
            shared("state", "where jobs are kept, as for bulk"),
            shared("json"),
        ],
    },
)
