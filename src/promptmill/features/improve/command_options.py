"""The options of `promptmill improve`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from promptmill.cli.options import add_shared
from promptmill.cli.parser import Parser, add_table, amount
from promptmill.core.feature import later
from promptmill.features.improve import Again
from promptmill.options import table


def add_options(improve: Parser) -> None:
    """Add the options of the command."""
    improve.add_argument("input", metavar="INPUT", help="a file of rows, at least 100 of them with their right labels")
    group = improve.add_argument_group("the rows and the prompt")
    group.add_argument("--gold", required=True, metavar="COLUMN", help="the column of the right labels")
    asked = group.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", metavar="TEXT", help="the prompt to improve, such as 'Is it positive? {{text}}'")
    asked.add_argument("--prompt-file", type=Path, metavar="FILE", help="the same, from a file")
    add_table(group, [option for option in table.ANSWERS if option.name == "choices"], required=True)
    group.add_argument("--system", default="", metavar="TEXT", help="system prompt above every row")
    group.add_argument("--encoding", metavar="NAME", help="of CSV, TSV and text, if not UTF-8: cp1252, utf-16, …")
    group = improve.add_argument_group("the search")
    group.add_argument("--strong", required=True, metavar="MODEL", help="the model that writes better prompts")
    group.add_argument("--max-cost", type=amount, metavar="AMOUNT", help="most that the whole search may spend")
    group.add_argument(
        "--again", choices=get_args(Again), help="send failed rows again, or let the strong model write other prompts"
    )
    group.add_argument("--state", type=Path, metavar="DIR", help="where jobs are kept, as for bulk")
    group = improve.add_argument_group("output")
    group.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="the file for the best prompt; else INPUT-prompt.txt"
    )
    group.add_argument("--overwrite", action="store_true", help="replace this file, if it is there")
    group.add_argument("--quiet", action="store_true", help="show no progress")
    group.add_argument("--json", action="store_true", help="print all figures as JSON")
    add_shared(improve)
    improve.show_examples(
        "promptmill improve reviews.csv --gold label --prompt 'Is this positive? {{text}}' --choices positive,negative "
        "--model small-1 --strong good-1",
        "promptmill improve mails.xlsx --gold topic --prompt-file topic.txt --choices praise,complaint --strong good-1 "
        "--output better.txt --max-tokens 10 --max-cost 5",
    )
    improve.set_defaults(command=later("promptmill.features.improve.command:run"))
