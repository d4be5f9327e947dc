"""What `promptmill compare` prints: the figures as text, and the path of its report."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from promptmill.cli.error_words import option_of
from promptmill.cli.terminal import OK, columns, say
from promptmill.core.errors import PromptmillError
from promptmill.core.values import JsonObject
from promptmill.features.compare import comparison_text, figures, words
from promptmill.features.compare.compared_file import ComparedFile, ComparisonOrder
from promptmill.features.compare.compared_rows import ComparedRows
from promptmill.features.compare.comparison import WIDTH
from promptmill.features.compare.work import ROWS
from promptmill.features.verbs.command_call import CommandCall
from promptmill.jobs.store.index import JobFolders


def lines(call: CommandCall, found: JsonObject) -> Iterator[str]:
    """Yield the figures as text; nothing if a judge stopped without a verdict."""
    if call.code != OK and not any(pair["judged"] for pair in found["judge"]["pairs"]):
        return
    if call.page is not None:
        yield str(call.page)
    if call.options["quiet"]:
        yield from words.overview(found).lines(_width())
        return
    yield from comparison_text.lines(found, _width())
    if len(found["files"]) > 2 and call.options["report"] is None:
        yield "\n--report FILE has the tables of all labels and pairs"
    if words.is_free_text(found) and "judge" not in found:
        yield "`--judge MODEL --criterion 'is the better summary'` says which is better"


def _width() -> int:
    """Return the width of the terminal; without a terminal, the width that the text of a `Comparison` has in Python."""
    return columns(sys.stdout) if sys.stdout.isatty() else WIDTH


def show_variants(output: Path, column: str) -> None:
    """Print a comparison of the variants in a job's output, if the output exists. `column` names each row's variant."""
    if not output.exists():  # the output is not written yet, or is a table, which compare does not read
        return
    try:
        file = ComparedFile.of("A", str(output), JobFolders.from_environ())
        found = figures.figures(ComparedRows.of(file.parts(column), ComparisonOrder()), most=ROWS)
    except PromptmillError as error:  # for example, no row has an answer, or the answers are fields
        say(f"promptmill: {error.worded(option_of)} Run: promptmill compare {output} --by {column}", sys.stderr)
        return
    say("\n".join(["", *comparison_text.lines(found, _width())]), wrap=True)
    say(f"\npromptmill compare {output} --by {column} --gold COLUMN: against right answers")
    say(f"promptmill compare {output} --by {column} --criterion TEXT: by a model that judges")
