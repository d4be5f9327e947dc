"""The options of `promptmill topics`."""

from __future__ import annotations

from pathlib import Path

from promptmill.cli.options import add_shared
from promptmill.cli.parser import Parser, amount, at_least_one
from promptmill.core.feature import later
from promptmill.features.topics import HELD_OUT, MOST, SAMPLE


def add_options(topics: Parser) -> None:
    """Add the options of the command."""
    topics.add_argument(
        "input", nargs="+", metavar="INPUT", help="files, folders or patterns, as for bulk: at least 50 rows with text"
    )
    topics.add_argument(
        "output", metavar="OUTPUT", help="the topics, for --choices: a .csv, .xlsx, .parquet, .jsonl, …"
    )
    group = topics.add_argument_group("the question and the rows")
    asked = group.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--prompt", metavar="TEXT", help="the question about each row: 'What do guests complain about? {{text}}'"
    )
    asked.add_argument("--prompt-file", type=Path, metavar="FILE", help="the same, from a file")
    group.add_argument("--system", default="", metavar="TEXT", help="system prompt above every row that is labelled")
    group.add_argument("--encoding", metavar="NAME", help="of CSV, TSV and text, if not UTF-8: cp1252, utf-16, …")
    group = topics.add_argument_group("the search")
    group.add_argument("--most", type=at_least_one, metavar="N", default=MOST, help=f"most topics; default: {MOST}")
    group.add_argument(
        "--sample",
        type=at_least_one,
        metavar="N",
        default=SAMPLE,
        help=f"number of random rows in which topics are found; default: {SAMPLE}",
    )
    group.add_argument(
        "--held-out",
        type=at_least_one,
        metavar="N",
        default=HELD_OUT,
        help=f"number of other rows on which topics are tried; default: {HELD_OUT}",
    )
    group.add_argument("--max-cost", type=amount, metavar="AMOUNT", help="most that all steps may spend")
    group.add_argument("--again", choices=("failed",), help="send failed requests again")
    group.add_argument("--state", type=Path, metavar="DIR", help="where jobs are kept, as for bulk")
    group = topics.add_argument_group("output")
    group.add_argument("--overwrite", action="store_true", help="replace OUTPUT, if it is there")
    group.add_argument("--dry-run", action="store_true", help="show the steps and their price; send nothing")
    group.add_argument("--quiet", action="store_true", help="show no progress")
    group.add_argument("--json", action="store_true", help="print all figures as JSON")
    add_shared(topics)
    topics.show_examples(
        "promptmill topics reviews.csv topics.csv --prompt 'What do guests complain about? {{text}}' -m good-1",
        "promptmill topics reviews.csv topics.csv --prompt-file question.txt --most 30 -m good-1 --dry-run",
    )
    topics.set_defaults(command=later("promptmill.features.topics.command:run"), names_next=True)
