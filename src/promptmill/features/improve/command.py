"""`promptmill improve`: a strong model writes prompts, and rows with right labels show whether a prompt is better."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import orjson

from promptmill.backends import registry
from promptmill.cli.error_words import explained, option_of
from promptmill.cli.foreground import StoppedError, passed_on, step_model, stopped
from promptmill.cli.options import text_of
from promptmill.cli.parser import refuse
from promptmill.cli.terminal import OK, columns, say
from promptmill.config.configuration import Configuration
from promptmill.core.errors import PromptmillError, redact
from promptmill.core.values import JsonObject
from promptmill.features.improve import search_text as words
from promptmill.features.improve.improvement import gold_in, system_of, write_prompt
from promptmill.features.improve.search import GAIN, search
from promptmill.features.improve.search_jobs import JobSteps, longest_of
from promptmill.jobs.manage.job_series import JobSeries, StepModel
from promptmill.jobs.manage.series_file import SeriesFile
from promptmill.jobs.store.index import JobFolders
from promptmill.system.safe_open import home_expanded

_OWN = {"--gold", "--prompt", "--prompt-file", "--strong", "--output", "-o", "--max-cost", "--again"}
"""The options with a value that the proposed command `bulk` does not get."""
_OWN_FLAGS = {"--overwrite", "--json", "--quiet"}


def run(arguments: argparse.Namespace, configuration: Configuration) -> int:
    """Search, print the result and write the prompt. Return 0 for any result, or a stopped job's exit code."""
    refuse(
        (not arguments.strong.strip(), "--strong", "needs the name of the model that writes better prompts."),
        (arguments.prompt == "", "--prompt", "is empty."),
    )
    prompt = arguments.prompt or text_of("--prompt-file", arguments.prompt_file).removesuffix("\n")
    source = home_expanded(arguments.input)
    output = home_expanded(arguments.output or Path(f"{source.name.partition('.')[0]}-prompt.txt"))
    target = SeriesFile(output, arguments.overwrite, sends_again=arguments.again is not None)
    gold = gold_in(source, arguments.gold, prompt, arguments.choices.texts, encoding=arguments.encoding)
    model = step_model(arguments)
    strong = _strong(arguments, model)
    for each in (model, strong):
        registry.check_key(each.models.config)

    def tell(text: str) -> None:
        if not arguments.quiet:
            say(text, sys.stderr, wrap=True)

    series = JobSeries(JobFolders.from_environ(), "improve", arguments.max_cost, target=target)
    steps = JobSteps(series, model, strong, arguments.system or "", arguments.again)
    try:
        found = search(gold, prompt, steps, system=system_of(arguments.system, arguments.choices), tell=tell)
    except StoppedError as error:
        return stopped(error, series.spent, "the search", " without --again" if arguments.again == "prompts" else "")
    except PromptmillError as error:
        raise explained(error, arguments, configuration) from None
    found |= series.spent
    try:
        if write_prompt(target, found):
            found["prompt_file"] = str(target.path)
    finally:  # the result was paid, so it is shown even if the file cannot be written
        if arguments.json:
            say(orjson.dumps(found).decode())
        else:
            say("\n".join(words.lines(found, columns(sys.stdout))), wrap=True)
            _show_file(arguments, found)
    return OK


def _show_file(arguments: argparse.Namespace, found: JsonObject) -> None:
    """Print the path of the prompt's file and, after a gain, a command that uses the prompt."""
    if (target := found.get("prompt_file")) is None:
        return
    is_better = found["outcome"] == GAIN
    say(f"\n{target} has the prompt {found['winner']}" + ("; to use it:" if is_better else ""))
    if is_better:
        say(f"  promptmill {redact(shlex.join(_bulk_command(arguments, target)))}")


def _strong(arguments: argparse.Namespace, model: StepModel) -> StepModel:
    """Return the strong model. `model`: the model that labels the rows."""
    limit = longest_of(model.models.config, arguments.max_cost)
    try:
        return step_model(arguments, model=arguments.strong, choices=None, temperature=None, max_tokens=limit)
    except PromptmillError as error:
        raise PromptmillError(error.code, error.worded(option_of).replace("--model:", "--strong:"), "") from None


def _bulk_command(arguments: argparse.Namespace, target: str) -> list[str]:
    """Return a command that labels the rows with the prompt in `target`."""
    kept = passed_on(arguments.given[1:], _OWN, _OWN_FLAGS)
    kept.remove(arguments.input)
    return ["bulk", arguments.input, "labels.csv", "--prompt-file", target, *kept]
