"""The record of `improve`: a command, a Python function and a tool."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from promptmill.features.verbs.record import option, shared
from promptmill.features.verbs.verb import Verb
from promptmill.options.option import Argument, Flag, Option

_SHOWN = Argument(is_common=True, is_required=True)
_OUTPUT = Flag("-o output", metavar="FILE")
IMPROVE = Verb(
    name="improve",
    noun="search",
    work="promptmill.features.improve.work:searched",
    write="promptmill.features.improve.work:write_prompt",
    lines="promptmill.features.improve.command:lines",
    examples="promptmill.features.improve.command_examples:EXAMPLES",
    tool="promptmill.features.improve.tool:TOOL",
    model="model",
    positional=["input"],
    required=[["gold"], ["prompt", "prompt_file"], ["choices"], ["strong"]],
    options={
        "": [
            option(
                "input",
                str,
                "a file of rows, at least 100 of them with their right labels",
                "INPUT",
                tool=Argument("input_file", "a table with 100 labelled rows or more", True, is_required=True),
            )
        ],
        "the rows and the prompt": [
            option(
                "gold", str, "the column of the right labels", "COLUMN", tool=Argument("", "", True, is_required=True)
            ),
            option(
                "prompt",
                str,
                "the prompt to improve, such as 'Is it positive? {{text}}'",
                "TEXT",
                tool=Argument("", "the prompt to improve: Is it positive? {{text}}", True, is_required=True),
            ),
            shared("prompt_file", flag=Flag(metavar="FILE")),
            shared(
                "choices", tool=Argument("", "the labels; an object also defines each of them", True, is_required=True)
            ),
            shared("system", tool=Argument("system_prompt", "system prompt of every row")),
            shared("encoding", tool=Argument("", "of a .csv that is not UTF-8, such as cp1252")),
        ],
        "the search": [
            option(
                "strong",
                str,
                "the model that writes better prompts",
                "MODEL",
                tool=Argument("", "the model that writes prompts", True, is_required=True),
            ),
            option("model", str, "the model that labels the rows", None, tool=Argument(is_common=True)),
            shared(
                "max_cost",
                "most that the whole search may spend",
                tool=Argument("", "most US dollars of the whole search", True, least=0),
            ),
            option("sampling_params", dict[str, Any], "of `model`", None, tool=Argument()),
            option(
                "again",
                Literal["failed", "prompts"],
                "send failed rows again, or let the strong model write other prompts",
                tool=Argument("", "`failed`: send failed rows again; `prompts`: let `strong` write other prompts"),
            ),
            shared("state", "where jobs are kept, as for bulk"),
        ],
        "output": [
            Option("output", Path, "the file for the best prompt; else INPUT-prompt.txt", flag=_OUTPUT, argument=None),
            shared("overwrite", "replace this file, if it is there"),
            shared("quiet"),
            shared("json", "print all figures as JSON"),
        ],
    },
)
