"""What `promptmill review` prints: the file with the rows, or the counts of the labels that are stored."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from promptmill.cli.error_words import option_of
from promptmill.cli.terminal import say
from promptmill.core.errors import worded
from promptmill.core.values import JsonObject
from promptmill.core.wording import counted
from promptmill.features.review.reviewed import NO_DOUBT
from promptmill.features.verbs.command_call import CommandCall


def lines(_: CommandCall, figures: JsonObject) -> Iterator[str]:
    """Yield the number of rows by reason, or the counts of labels."""
    if "taken" in figures:
        yield f"{_counts(figures)}."
        for problem in figures.get("refused", ()):
            say(problem, sys.stderr, wrap=True)
    elif not figures["rows"]:
        yield f"no row of {figures['job_id']} is in doubt.\n{worded(NO_DOUBT, option_of)}"
    else:
        named = ", ".join(f"{count:,} {why}" for why, count in figures["reasons"].items())
        yield f"{counted(figures['rows'], 'row')} to review ({named}): {figures['file']}"


def _counts(taken: JsonObject) -> str:
    changed = f", {taken['changed']:,} of them {'changes' if taken['changed'] == 1 else 'change'} the answer"
    later = "" if taken["written"] else "; the next run of the job writes the output"
    back = f", {counted(taken['taken_back'], 'label')} taken back" if taken["taken_back"] else ""
    refused = f", {counted(len(taken['refused']), 'line')} refused" if "refused" in taken else ""
    return f"{counted(taken['taken'], 'label')} taken{changed if taken['taken'] else ''}{back}{refused}{later}"
