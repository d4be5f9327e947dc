"""What `promptmill topics` prints: the topics, and a command that labels all rows; or the estimate of the cost."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path

from promptmill.cli.error_words import option_of
from promptmill.cli.foreground import free_name, passed_on
from promptmill.core.errors import redact, worded
from promptmill.core.money import dollars
from promptmill.core.values import JsonObject
from promptmill.core.wording import counted
from promptmill.features.compare.words import Table
from promptmill.features.topics import topics_text
from promptmill.features.topics.finding import LARGE
from promptmill.features.verbs.command_call import CommandCall
from promptmill.jobs.store.index import JobFolders
from promptmill.steps.prices import no_price_known
from promptmill.system.safe_open import home_expanded, real_path

_OWN = {"--prompt", "--prompt-file", "--most", "--sample", "--held-out", "--max-cost", "--again"}
"""The options with a value that are left out of the proposed command `bulk`."""
_LABELS = Path("labels.csv")
"""The output of the proposed command for all rows."""
_OWN_FLAGS = {"--overwrite", "--json", "--quiet"}


def lines(call: CommandCall, figures: JsonObject) -> Iterator[str]:
    """Yield the topics and the command for all rows, or the estimate of the cost."""
    if "steps" in figures:
        yield from _estimate_lines(figures, call.width)
        if figures["unpriced"]:
            config = call.model(choices=None).models.config
            yield worded(no_price_known(config, figures["unpriced"]), option_of)
        return
    assert call.made is not None
    yield from topics_text.lines(figures, call.width, call.made.sent)
    for output, count in call.made.taken.items():
        yield f"{counted(count, 'answer')} are those of {output}"
    if "output_file" in figures and call.names_next:
        labels, does = _labels_of(call.folders, call.options["prompt"], figures)
        yield f"\n{home_expanded(call.options['output'])} has the topics; {does}:"
        words = _bulk_command(call.arguments, call.options["prompt"], figures, labels)
        yield f"  promptmill {redact(shlex.join(words))}"


def _estimate_lines(found: JsonObject, width: int) -> Iterator[str]:
    """Yield lines about the steps of a search and their costs. Some costs depend on the trial of the topics."""
    rows = [
        [step["step"] + ("" if step["is_certain"] else " *"), f"{step['requests']:,}", _dollars(step["estimated_cost"])]
        for step in found["steps"]
    ]
    yield from Table(["step", "requests", "about"], rows).lines(width)
    certain, every = found["certain"], found["all"]
    if every != certain:
        yield f"* only if more than {100 * LARGE:.0f} % of the held-out rows fit no topic"
    costs = _costs(certain)
    yield f"{counted(certain['requests'], 'request')}{costs}"
    if every != certain:
        yield f"with the steps * {counted(every['requests'], 'request')}{_costs(every)}"


def _dollars(amount: float | None) -> str:
    return "" if amount is None else dollars(amount)


def _costs(found: JsonObject) -> str:
    if found["estimated_cost"] is None:
        return ""
    most = found["most_cost"]
    highest = "more with longer answers, which --max-tokens would limit" if most is None else f"at most {dollars(most)}"
    return f", about {dollars(found['estimated_cost'])}; {highest}"


def _labels_of(folders: JobFolders, prompt: str, found: JsonObject) -> tuple[Path, str]:
    """Return the output of the command that labels all rows, and a text about the command. The output is `_LABELS` if
    this file does not exist yet, or if its job has the same prompt."""
    labelled = found["topics"][0]["rows"]
    if _LABELS.exists():
        spec = folders.of(real_path(_LABELS)).spec
        if spec is not None and spec.question.templates == (prompt,):
            return _LABELS, f"this command labels the rows that {_LABELS} lacks"
    if found["is_exact"]:
        does = f"all {counted(labelled, 'row')} with text are labelled, and this command writes the labels"
    else:
        does = f"this command labels all rows, of which {labelled:,} are labelled already"
    return free_name(_LABELS) if _LABELS.exists() else _LABELS, does


def _bulk_command(arguments: argparse.Namespace, prompt: str, found: JsonObject, labels: Path) -> list[str]:
    """Return a command that labels all rows with the topics, and reuses the labels that the search already paid for."""
    kept = passed_on(arguments.given[1:], _OWN, _OWN_FLAGS)
    for name in (*arguments.input, arguments.output):
        kept.remove(name)
    asked = ["--prompt", prompt] if arguments.prompt else ["--prompt-file", str(arguments.prompt_file)]
    paid = [word for job_id in found["jobs"] for word in ("--from", job_id)]
    skips = ["--skip-empty"] if found["rows"]["empty"] else []
    return ["bulk", *arguments.input, str(labels), *asked, "--choices", arguments.output, *paid, *skips, *kept]
