"""The options of the core's commands. The module that runs a command is imported when the command runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from promptmill.cli.options import add_shared
from promptmill.cli.parser import Parser, add_table, at_least_one
from promptmill.core.feature import JobAction, features, later, order_parts, part
from promptmill.options import table
from promptmill.options.option import Option

SHOWN_ROWS = 5
"""The number of rows that `promptmill jobs JOB --rows` shows."""


def add_bulk(bulk: Parser) -> None:
    """Add the options of `bulk`."""
    bulk.add_argument(
        "input",
        nargs="+",
        metavar="INPUT",
        help="files, folders, patterns or URLs: .csv, .xlsx#SHEET, .parquet, .jsonl, .db#TABLE, .pdf, …; - for "
        "standard input; none with --sql if the query names the files",
    )
    bulk.add_argument("output", metavar="OUTPUT", help="the answers, written in order at the end; or -")
    for group in table.groups():
        if any(option.flag is not None for option in group.options):
            add_table(bulk.add_argument_group(group.heading), group.options, several=True)
    bulk.replaces_first = "--sql"
    known = table.options()
    common = [each for each in known.values() if each.flag is not None and each.flag.is_common]
    of_features = [group.heading for group in table.groups()[len(table.GROUPS) :]]
    bulk.shorten({str(each.name_on("flag")): each.brief_on_flag(known) for each in common}, of_features)
    bulk.show_examples(
        "promptmill bulk in.csv out.csv --prompt 'Topic? {{text}}' --choices food,staff",
        "promptmill bulk in.csv out.csv --prompt '{{text}}' --schema name,amount:number",
        "promptmill bulk mails/ topics.csv --prompt 'What is it about? {{content}}'",
        "promptmill bulk pictures/ captions.csv --prompt 'Describe the picture.'",
        "promptmill bulk in.csv out.csv --again failed  # without it: the other rows",
    )
    run, precheck = later("promptmill.cli.bulk:run_bulk"), later("promptmill.cli.bulk:precheck")
    bulk.set_defaults(command=run, precheck=precheck, is_step=False)


def add_generate(parser: Parser) -> None:
    """Add the options of `generate`."""
    parser.add_argument("prompt", nargs="*", help="a prompt; several are answered together; none, or -: stdin")
    group = parser.add_argument_group("prompts")
    group.add_argument("-s", "--system", default="", metavar="TEXT", help="system prompt")
    group.add_argument("--lines", action="store_true", help="every line of stdin is a prompt")
    group.add_argument(
        "--image", action="append", default=[], metavar="PATH", help="a path or URL of an image; may be repeated"
    )
    group = parser.add_argument_group("answers")
    forms = [each for each in table.ANSWERS if each.name in {"choices", "schema", "fields", "choices_many"}]
    add_table(group, forms)
    group.add_argument("-o", "--output", type=Path, metavar="FILE", help="write to FILE instead of stdout")
    group.add_argument("--json", action="store_true", help="print the result as JSON")
    add_table(parser.add_argument_group("features"), table.of_answers())
    add_shared(parser, several=True)
    parser.show_examples(
        "promptmill generate 'What is the capital of France?'",
        "promptmill generate --base-url localhost:11434 --model qwen3:8b 'What is the capital of France?'",
        "promptmill generate --model qwen3:8b --model gemma3:4b 'What is the capital of France?'",
        "promptmill generate --choices sport,politics 'We won 2 to 1.' 'They voted today.'",
        "promptmill generate --image photo.jpg 'Describe the picture.'",
        "promptmill generate --lines < questions.txt",
    )
    parser.set_defaults(command=later("promptmill.cli.generate:run_generate"))


def add_jobs(jobs: Parser) -> None:
    """Add the options of `jobs`."""
    jobs.add_argument(
        "job_id", nargs="?", metavar="JOB", help="the id of a job, or its output; without it the newest 20 jobs"
    )
    looking = jobs.add_argument_group("look", "without an action: show the progress of jobs")
    looking.add_argument("--follow", action="store_true", help="show the progress of a job until it ends")
    looking.add_argument("--watch", action="store_true", help="a live table of all running jobs, until Ctrl-C")
    looking.add_argument(
        "--rows",
        type=at_least_one,
        nargs="?",
        const=SHOWN_ROWS,
        metavar="N",
        help=f"some rows at random, else {SHOWN_ROWS}, each prompt above its answer; also of any file of rows",
    )
    looking.add_argument("--seed", type=int, metavar="N", help="with --rows: the same rows each time")
    looking.add_argument("--full", action="store_true", help="with --rows: texts of more than 2,000 characters, too")
    looking.add_argument(
        "--failed",
        action="store_true",
        help="only jobs that failed or have failed rows; with JOB its failed rows; with --rows these first",
    )
    for action in job_actions():
        part(action.options)(looking)
    acting = jobs.add_argument_group("act on a job")
    acting.add_argument(
        "--cancel", action="store_true", help="end the job after its requests in flight; given again: at once"
    )
    acting.add_argument("--resume", action="store_true", help="resume the job in this terminal")
    acting.add_argument("--retry-failed", action="store_true", help="send the failed rows again, in this terminal")
    acting.add_argument(
        "--trust",
        action="store_true",
        help="with --resume or --retry-failed: obey a command that another user stored, or you on another computer",
    )
    acting.add_argument("--pause", action="store_true", help="send no further rows until --unpause")
    acting.add_argument("--unpause", action="store_true", help="send rows again")
    acting.add_argument("--export", type=Path, metavar="FILE", help="write the answers so far to FILE")
    for option in shapes():
        metavar = None if option.flag is None else option.flag.metavar
        acting.add_argument(str(option.name_on("flag")), metavar=metavar, help=f"with --export: {option.words}")
    acting.add_argument("--forget", action="store_true", help="delete what is stored of a job; its output stays")
    acting.add_argument("--join", action="store_true", help="write OUTPUT from the parts that `bulk --shard I/N` made")
    acting.add_argument("--overwrite", action="store_true", help="with --join: replace OUTPUT if it exists")
    every = jobs.add_argument_group("all jobs")
    every.add_argument("--all", action="store_true", help="list all jobs; with --export: also rows without an answer")
    every.add_argument(
        "--prune", metavar="AGE", help="delete finished jobs older than AGE (30m, 12h, 7d, 2w); outputs stay"
    )
    every.add_argument(
        "--unfinished", action="store_true", help="with --prune or --forget: also jobs that could be resumed"
    )
    every.add_argument("--cache", action="store_true", help="show the size of the cache of answers")
    every.add_argument("--clear", action="store_true", help="with --cache: delete all of its answers")
    jobs.add_argument("--state", type=Path, metavar="DIR", help="the folder of jobs, as for bulk")
    jobs.add_argument("--json", action="store_true", help="print the result as JSON")
    add_shared(jobs)
    jobs.show_examples(
        "promptmill jobs                                      # how far all jobs are",
        "promptmill jobs labels-ee43615806 --follow",
        "promptmill jobs labels-ee43615806 --retry-failed     # with the command that the job remembers",
        "promptmill jobs labels.csv --rows                    # five of its rows",
        "promptmill jobs labels-ee43615806 --export so-far.csv",
        "promptmill jobs --prune 30d",
        "promptmill jobs labels-ee43615806 --set concurrency=50 --set max_cost=20    # of a job that runs elsewhere",
    )
    jobs.set_defaults(unconfigured=later("promptmill.cli.jobs:run_jobs"))


def job_actions() -> Iterator[JobAction]:
    """Yield the actions of features."""
    for feature in features().values():
        yield from feature.job_actions


def shapes() -> list[Option]:
    """Return the options of features that give an output another shape."""
    return [table.options()[entry.name] for entries in order_parts() for entry in entries if entry.is_shape]


def add_models(parser: Parser) -> None:
    """Add the options of `models`."""
    group = parser.add_argument_group("what to do", "without any of these: list the models that --model NAME knows")
    doing = group.add_mutually_exclusive_group()
    doing.add_argument(
        "--check",
        dest="command",
        action="store_const",
        const=later("promptmill.cli.setup:check"),
        help="try configuration, endpoint, key and model, with a one-token call",
    )
    doing.add_argument(
        "--providers",
        dest="unconfigured",
        action="store_const",
        const=later("promptmill.cli.listings:show_providers"),
        default=argparse.SUPPRESS,
        help="list the providers for --provider NAME, and their keys",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_shared(parser)
    parser.show_examples(
        "promptmill models                                    # of the configuration in use",
        "promptmill models --check --base-url localhost:11434 --model qwen3:8b",
        "promptmill models --providers",
    )
    parser.set_defaults(command=later("promptmill.cli.listings:show_models"))


def add_init(parser: Parser) -> None:
    """Add the options of `init`."""
    parser.add_argument("url", nargs="?", metavar="URL", help="the address of a server, as --base-url has it")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the file to write; default: parameter.yaml")
    parser.add_argument("--force", action="store_true", help="replace the file if there is one")
    add_shared(parser)
    parser.show_examples(
        "promptmill init                                      # asks three questions",
        "promptmill init --provider mistral --model mistral-small-latest",
        "promptmill init localhost:11434 --model qwen3:8b -o local.yaml",
    )
    parser.set_defaults(unconfigured=later("promptmill.cli.setup:run_init"))


def add_features(parser: Parser) -> None:
    """Add the options of `features`."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(unconfigured=later("promptmill.cli.listings:show_features"))
