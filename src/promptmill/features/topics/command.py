"""`promptmill topics`: unknown labels of a table, found in a sample of rows and tried on other rows."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import orjson

from promptmill.backends import registry
from promptmill.cli.error_words import explained, option_of
from promptmill.cli.foreground import StoppedError, free_name, passed_on, step_model, stopped
from promptmill.cli.options import text_of
from promptmill.cli.parser import refuse
from promptmill.cli.terminal import OK, columns, say
from promptmill.config.configuration import Configuration
from promptmill.core.bounds import MOST_CHOICES
from promptmill.core.errors import PromptmillError, redact, worded
from promptmill.core.money import dollars
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import counted
from promptmill.features.compare.words import Table
from promptmill.features.topics import topics_text as words
from promptmill.features.topics.covering import Covering, chosen_rows, with_chosen
from promptmill.features.topics.drawn import Drawn
from promptmill.features.topics.finding import LARGE, Finding
from promptmill.features.topics.topic_file import TopicFile
from promptmill.features.topics.topic_jobs import (
    Form,
    StepQuestions,
    TopicEstimate,
    TopicJobs,
    check_form,
    figures_of,
    longest_of,
    settings_of,
)
from promptmill.features.topics.topic_rows import TopicRows
from promptmill.features.topics.topics import check_number
from promptmill.jobs.door import decided
from promptmill.jobs.manage.job_series import JobSeries, StepModel
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.status_words import progress_lines
from promptmill.steps.prices import no_price_known
from promptmill.system.safe_open import home_expanded, real_path

_OWN = {"--prompt", "--prompt-file", "--most", "--sample", "--held-out", "--max-cost", "--again"}
"""The options with a value that the proposed command `bulk` does not get."""
_LABELS = Path("labels.csv")
"""The output of the proposed command for all rows."""
_OWN_FLAGS = {"--overwrite", "--json", "--quiet"}


def run(arguments: argparse.Namespace, configuration: Configuration) -> int:
    """Find topics, print them and write them. Return 0, or the exit code of a job that stopped."""
    refuse((arguments.prompt == "", "--prompt", "is empty."))
    check_number("most", arguments.most, MOST_CHOICES - 1)
    prompt = arguments.prompt or text_of("--prompt-file", arguments.prompt_file).removesuffix("\n")
    sources = [home_expanded(name) for name in arguments.input]
    target = TopicFile(home_expanded(arguments.output), arguments.overwrite, sends_again=arguments.again is not None)
    target.check(sources)
    drawn = _drawn(arguments, TopicRows(sources, prompt, arguments.encoding, target.path))
    configuration = decided(configuration)
    check_form(configuration.config)
    folders = JobFolders.from_environ()
    kept = folders.of_series(real_path(target.path.absolute()))
    series = JobSeries(kept, "topics", arguments.max_cost, target=target)
    limit = longest_of(configuration.config, arguments.max_cost, arguments.most)

    def model(form: Form) -> StepModel:
        return step_model(arguments, names_failures=False, **settings_of(form, limit))

    tell = partial(_tell, quiet=arguments.quiet)
    questions = StepQuestions(prompt, arguments.system, arguments.again)
    if arguments.dry_run:
        estimates = [TopicEstimate(series, model, questions, fits) for fits in (True, False)]
        return _show_estimate(_estimated(drawn, arguments.most, estimates), configuration, as_json=arguments.json)
    registry.check_key(configuration.config)
    try:
        jobs = TopicJobs(series, model, questions)
        watch = None if arguments.quiet else progress_lines("vectors", sys.stderr)
        covering = Covering(series.folders, configuration.config, arguments.config, watch)
        finding = Finding(covering.of(drawn, tell), prompt, arguments.most, jobs, tell, notes=covering.notes)
        found = finding.figures() | series.spent
        found["jobs"] = jobs.labelled_with(found["topics"])
    except StoppedError as error:
        return stopped(error, series.spent, "the search")
    except PromptmillError as error:
        raise explained(error, arguments, configuration) from None
    try:
        target.write(found)
        found["output_file"] = str(target.path)
    finally:  # the result was paid, so it is shown even if the file cannot be written
        if arguments.json:
            say(orjson.dumps(found).decode())
        else:
            say("\n".join(words.lines(found, columns(sys.stdout), series.sent)), wrap=True)
            for output, count in series.taken.items():
                say(f"{counted(count, 'answer')} are those of {output}", wrap=True)
            if "output_file" in found and arguments.names_next:
                _say_next(arguments, folders, prompt, found)
    return OK


def _say_next(arguments: argparse.Namespace, folders: JobFolders, prompt: str, found: JsonObject) -> None:
    """Print the command that labels all rows."""
    labels, does = _labels_of(folders, prompt, found)
    say(f"\n{home_expanded(arguments.output)} has the topics; {does}:")
    say(f"  promptmill {redact(shlex.join(_bulk_command(arguments, prompt, found, labels)))}")


def _tell(text: str, *, quiet: bool) -> None:
    if not quiet:
        say(text, sys.stderr, wrap=True)


def _drawn(arguments: argparse.Namespace, rows: TopicRows) -> Drawn:
    """Return the drawn rows, and print the remarks about the input."""
    drawn = rows.drawn(arguments.sample, arguments.held_out)
    for note in rows.notes:
        say(worded(note, option_of), sys.stderr, wrap=True)
    return drawn


def _estimated(drawn: Drawn, most: int, estimates: Sequence[TopicEstimate]) -> JsonDict:
    likely = with_chosen(drawn, range(chosen_rows(drawn)))  # any rows, as many as would be chosen
    for estimate in estimates:
        Finding(likely, estimate.questions.prompt, most, estimate, is_estimate=True).figures()
    return figures_of(*estimates)


def _show_estimate(found: JsonObject, configuration: Configuration, *, as_json: bool) -> int:
    if as_json:
        say(orjson.dumps(found).decode())
        return OK
    say("\n".join(_estimate_lines(found, columns(sys.stdout))), wrap=True)
    if found["unpriced"]:
        say(worded(no_price_known(configuration.config, found["unpriced"]), option_of), wrap=True)
    return OK


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
    """Return the output of the command for all rows, and a text about the command. The usual file is the output if
    it does not exist, or if its job has the same prompt."""
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
    """Return a command that labels all rows with the topics, and reuses the labels that the search has paid."""
    kept = passed_on(arguments.given[1:], _OWN, _OWN_FLAGS)
    for name in (*arguments.input, arguments.output):
        kept.remove(name)
    asked = ["--prompt", prompt] if arguments.prompt else ["--prompt-file", str(arguments.prompt_file)]
    paid = [word for job_id in found["jobs"] for word in ("--from", job_id)]
    skips = ["--skip-empty"] if found["rows"]["empty"] else []
    return ["bulk", *arguments.input, str(labels), *asked, "--choices", arguments.output, *paid, *skips, *kept]
