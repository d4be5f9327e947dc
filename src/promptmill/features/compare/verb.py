"""The record of `compare`: a command, a Python function and a tool."""

from __future__ import annotations

from typing import Any, Literal

from promptmill.core.bounds import MOST_ROWS
from promptmill.features.verbs.record import option, shared
from promptmill.features.verbs.verb import Verb
from promptmill.options import table
from promptmill.options.option import Argument, Flag, Option

_JUDGING = ("judge", "limit", "max_cost", "again", "sampling_params", "key_env")
_OF_A_MODEL = [each.name for each in (*table.CONFIGURATION, *table.MODEL, *table.SAMPLING) if each.name != "config"]
COMPARE = Verb(
    name="compare",
    noun="comparison",
    work="promptmill.features.compare.work:compared",
    lines="promptmill.features.compare.command:lines",
    examples="promptmill.features.compare.command_examples:EXAMPLES",
    tool="promptmill.features.compare.tool:TOOL",
    model="judge",
    only_with={"criterion": [*_JUDGING, "set", *_OF_A_MODEL], "report": ["open"]},
    positional=["files"],
    options={
        "": [
            option(
                "files",
                list[str],
                "outputs of the same rows, or their jobs; any file of rows",
                "FILE|JOB",
                tool=Argument(
                    "",
                    "outputs of the same rows, or ids of their jobs; one with `gold` or `by`",
                    True,
                    is_required=True,
                ),
            )
        ],
        "rows and columns": [
            option(
                "gold",
                str,
                "right answers of all or some rows: a column of any of the files, or a file: gold.csv, gold.csv:COLUMN",
                "COLUMN|FILE",
                tool=Argument("", "the right answers of some rows: a column, a file, or `FILE:COLUMN`", True),
            ),
            Option(
                "field",
                list[str],
                "compare this column, or field of the answers; may be repeated; else all fields, or the answers",
                flag=Flag(metavar="NAME", action="append"),
                argument=Argument("", "the columns, or fields of answers, to compare"),
            ),
            option(
                "tolerance",
                str | float,
                "numbers that differ by no more than this are the same, such as 0.01 or 1%",
                "N|P%",
                tool=Argument("", "numbers that differ by no more, 0.01 or 1%, are the same"),
            ),
            option(
                "id",
                str,
                "the column by which rows are the same; else id, or all of them",
                "COLUMN",
                tool=Argument("", "the column that identifies rows, `id` or the shared ones"),
            ),
            option(
                "by",
                str,
                "compare the rows of one file that this column tells apart",
                "COLUMN",
                tool=Argument("", "the column that tells answers in one file apart, such as `variant`", True),
            ),
            shared("state", "where jobs are kept, as for bulk"),
        ],
        "output": [
            option(
                "rows",
                int,
                "show this many rows that differ; else 5",
                "N",
                tool=Argument("", "most rows that differ to return, 10", least=0, most=MOST_ROWS),
            ),
            shared("json", "print all figures as JSON"),
            shared("quiet", "print the first table alone"),
            option(
                "report",
                str,
                "write all of it, and the rows, to one HTML file",
                "FILE",
                tool=Argument("", "also write a report, an HTML page of all rows, to this file", True),
            ),
            option("open", bool, "show the report in the browser", default=False),
        ],
        "a judge: a model says which of two different answers is better": [
            option(
                "criterion",
                str,
                "such as 'is the better summary'; each pair in both orders",
                "TEXT",
                tool=Argument(
                    "", "what makes an answer better: 'is the better summary'. A model judges each pair, in a job", True
                ),
            ),
            option("judge", str, "the judge, named as `model`", None, tool=Argument()),
            option("sampling_params", dict[str, Any], "of the judge", None, tool=Argument()),
            option("limit", int, "judge only this many rows, drawn at random", "N", tool=Argument(least=1)),
            shared(
                "max_cost",
                "most that this judgement may spend, in all",
                tool=Argument("", "most US dollars of the judgement, in all its runs", least=0),
            ),
            option("again", Literal["failed", "all"], "judge these pairs again", tool=Argument()),
        ],
    },
)
