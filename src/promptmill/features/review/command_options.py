"""The options of `promptmill review`."""

from __future__ import annotations

from pathlib import Path

from promptmill.cli.parser import Parser, at_least_one
from promptmill.core.feature import later
from promptmill.features.review import ROWS


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    parser.add_argument("job", metavar="JOB", help="a job, or its output")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help=".html or .xlsx; else a page, OUTPUT.review.html"
    )
    parser.add_argument("--rows", type=at_least_one, metavar="N", help=f"so many rows; else {ROWS}")
    parser.add_argument(
        "--sample", type=at_least_one, metavar="N", help="N rows at random instead, for `compare --gold FILE`"
    )
    parser.add_argument("--take", type=Path, metavar="FILE", help="store the labels of a review; nothing is sent")
    parser.add_argument("--choices", metavar="LABELS", help="labels, also those that no answer has, such as yes,no")
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    parser.add_argument("--state", type=Path, metavar="DIR", help="where jobs are kept, as for bulk")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.show_examples(
        "promptmill review labels.csv --open      # a page; it saves JOB.decisions.csv",
        "promptmill review labels.csv -o review.xlsx --rows 200",
        "promptmill review labels.csv --take JOB.decisions.csv",
        "promptmill review labels.csv --sample 200 -o sample.xlsx      # for compare labels.csv --gold sample.xlsx",
    )
    parser.set_defaults(unconfigured=later("promptmill.features.review.command:run"))
