"""The options of `promptmill compare`."""

from __future__ import annotations

from pathlib import Path

from promptmill.cli.options import OF_THE_MODEL, add_shared
from promptmill.cli.parser import Parser, amount, at_least_one
from promptmill.core.feature import later

ROWS = 5
"""The rows that differ which the text shows."""
JUDGING = ("limit", "max_cost", "again", "set", *OF_THE_MODEL)
"""The options of a judge, as argparse stores them."""


def add_options(compare: Parser) -> None:
    """Add the options of the command."""
    compare.add_argument(
        "files", nargs="+", metavar="FILE|JOB", help="outputs of the same rows, or their jobs; any file of rows"
    )
    group = compare.add_argument_group("rows and columns")
    group.add_argument(
        "--gold",
        metavar="COLUMN|FILE",
        help="right answers, of all or some rows: a column of any of the files, or a file: gold.csv, gold.csv:COLUMN",
    )
    group.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME",
        help="compare this column, or field of the answers; may be repeated; else all fields, or the answers",
    )
    group.add_argument(
        "--tolerance", metavar="N|P%", help="numbers that differ by no more than this are the same, such as 0.01 or 1%%"
    )
    group.add_argument("--id", metavar="COLUMN", help="the column by which rows are the same; else id, or all of them")
    group.add_argument("--by", metavar="COLUMN", help="compare the rows of one file that this column tells apart")
    group.add_argument("--state", type=Path, metavar="DIR", help="where jobs are kept, as for bulk")
    group = compare.add_argument_group("output")
    group.add_argument(
        "--rows", type=at_least_one, default=ROWS, metavar="N", help=f"show this many rows that differ; else {ROWS}"
    )
    group.add_argument("--json", action="store_true", help="print all figures as JSON")
    group.add_argument("--quiet", action="store_true", help="print the first table alone")
    group.add_argument("--report", type=Path, metavar="FILE", help="write all of it, and the rows, to one HTML file")
    group.add_argument("--open", action="store_true", help="with --report: show it in the browser")
    group = compare.add_argument_group("a judge", "a model says which of two different answers is better")
    group.add_argument("--criterion", metavar="TEXT", help="such as 'is the better summary'; each pair in both orders")
    group.add_argument("--limit", type=at_least_one, metavar="N", help="judge only this many rows, drawn at random")
    group.add_argument("--max-cost", type=amount, metavar="AMOUNT", help="most that this judgement may spend, in all")
    group.add_argument("--again", choices=("failed", "all"), help="judge these pairs again")
    add_shared(compare, named=["--judge"])
    compare.show_examples(
        "promptmill compare labels-a.csv labels-b.csv --gold label",
        "promptmill compare labels.csv --by variant --report comparison.html --open",
        "promptmill compare summaries-a.csv summaries-b.csv --judge good-1 --criterion 'is the better summary'",
    )
    compare.only_with = {"criterion": JUDGING}
    compare.set_defaults(unconfigured=later("promptmill.features.compare.command:run"))
