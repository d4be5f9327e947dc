"""The record of `topics`: a command and a Python function."""

from __future__ import annotations

from typing import Literal

from promptmill.features.topics import HELD_OUT, MOST, SAMPLE
from promptmill.features.verbs.record import option, shared
from promptmill.features.verbs.verb import Verb
from promptmill.options.option import Flag

TOPICS = Verb(
    name="topics",
    noun="search",
    work="promptmill.features.topics.work:found",
    write="promptmill.features.topics.work:write",
    lines="promptmill.features.topics.command:lines",
    examples="promptmill.features.topics.command_examples:EXAMPLES",
    model="model",
    reports_failures=False,
    positional=["input", "output"],
    required=[["prompt", "prompt_file"]],
    options={
        "": [
            option("input", list[str], "files, folders or patterns, as for bulk: at least 50 rows with text", "INPUT"),
            option("output", str, "the topics, for choices of bulk: a .csv, .xlsx, .parquet, .jsonl, …", "OUTPUT"),
        ],
        "the question and the rows": [
            option("prompt", str, "the question about each row: 'What do guests complain about? {{text}}'", "TEXT"),
            shared("prompt_file", flag=Flag(metavar="FILE")),
            shared("system", "system prompt above every row that is labelled"),
            shared("encoding"),
        ],
        "the search": [
            option("most", int, f"most topics; default: {MOST}", "N", default=MOST),
            option("sample", int, f"random rows in which topics are found; default: {SAMPLE}", "N", default=SAMPLE),
            option(
                "held_out", int, f"other rows on which topics are tried; default: {HELD_OUT}", "N", default=HELD_OUT
            ),
            shared("max_cost", "most that all steps may spend"),
            option("again", Literal["failed"], "send failed requests again"),
            shared("state", "where jobs are kept, as for bulk"),
        ],
        "output": [
            shared("overwrite", "replace OUTPUT, if it is there"),
            option("dry_run", bool, "show the steps and their price; send nothing", default=False),
            shared("quiet"),
            shared("json", "print all figures as JSON"),
        ],
    },
)
