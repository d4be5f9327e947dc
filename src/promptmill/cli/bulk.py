"""`promptmill bulk`: writes answers to the rows of a file, in the foreground, through pipes, or detached."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from promptmill.backends import registry
from promptmill.cli.command_options import add_bulk
from promptmill.cli.error_words import option_of
from promptmill.cli.foreground import remembered_command, run, warn_of_input
from promptmill.cli.job_display import command_of, print_status
from promptmill.cli.options import text_of
from promptmill.cli.parser import Parser, refuse
from promptmill.cli.terminal import OK, TRY_AGAIN, complain, say
from promptmill.config.configuration import Configuration
from promptmill.config.model_config import ModelConfig
from promptmill.core.errors import Code, PromptmillError, config_error, redact, worded
from promptmill.core.money import dollars
from promptmill.core.wording import counted, cut_inside, listed
from promptmill.files import table_paths
from promptmill.files.path_formats import check_installed, compressed, compression_of, format_of_output, is_url
from promptmill.images.files import NOUNS
from promptmill.jobs.door import MadeRows, NamedRows, OpenJob, Rows, Telling, check_budget, decided, open_job
from promptmill.jobs.export.answered import answered_rows, every_answer
from promptmill.jobs.export.live_output import LiveOutput
from promptmill.jobs.export.output import end_of, write_rows
from promptmill.jobs.export.text import OutputForm
from promptmill.jobs.inputs.input_rows import blocks_of_stdin, suffix_of
from promptmill.jobs.inputs.remote_files import RemoteOutput, Say
from promptmill.jobs.run.job import followers
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.order import OrderTexts
from promptmill.options.check import check
from promptmill.options.option import Option
from promptmill.options.table import SAMPLING_KEYS, options
from promptmill.steps.likely import ASSUMED
from promptmill.steps.prices import no_price_known

_SAID_EVERY_S = 10.0
_LINES_SHOWN, _LINE_SHOWN = 6, 300  # lines shown of a prompt, and characters of a line: three prompts fit on a screen
_NAMED = re.compile(r"([\w.-]{1,40})=(.*)", re.DOTALL)


def _named_prompts(prompts: Sequence[str]) -> dict[str, str]:
    found = {}
    for prompt in prompts:
        named = _NAMED.fullmatch(prompt)
        if named is None or named[1] in found:
            why = " needs a name" if named is None else f" has the name {named[1]} twice"
            raise config_error(
                "--prompt", f"{why}; several are written NAME=TEXT, such as 'short=Classify: {{{{text}}}}'."
            )
        found[named[1]] = named[2]
    return found


def _options_of(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the options of a command by their names in the option table. Several prompts or models become lists."""
    prompts = list(dict.fromkeys(getattr(arguments, "prompts", None) or []))
    models = list(dict.fromkeys(getattr(arguments, "models", None) or [])) or arguments.model
    named = {"prompt": prompts if prompts[1:] else arguments.prompt, "model": models}
    return vars(arguments) | named


def run_bulk(arguments: argparse.Namespace, configuration: Configuration) -> int:
    """Run the command, and return its exit code."""
    _check(arguments)
    if not arguments.validate:
        registry.check_key(configuration.config)
    command, folders = remembered_command(arguments.given, configuration), JobFolders.from_environ()
    output, values, tell = arguments.output, _read_options(arguments), partial(_tell, quiet=arguments.quiet)
    telling = Telling(tell, tell, partial(_patient, tell=tell))
    if output == "-":
        format_of_output(printed := _printed_name(arguments), "")
        check_installed(printed)
        output, configuration = None, decided(configuration)
    with contextlib.ExitStack() as opened:
        try:
            rows = _rows_of(arguments)
            shown = OrderTexts(command=command)
            door = open_job(rows, output, values, configuration, folders, shown=shown, telling=telling)
            job = opened.enter_context(door)
        except PromptmillError as error:
            if error.code is not Code.STORAGE or not any(map(is_url, [*arguments.input, arguments.output])):
                raise
            complain(str(error))
            return TRY_AGAIN
        for note in job.notes:
            say(worded(note, option_of), sys.stderr, wrap=True)
        if job.loose is not None:
            return _printed(arguments, configuration, job, job.loose)
        if arguments.validate:
            return _validate(job, as_json=arguments.json)
        if arguments.detach:
            job = replace(job, models=decided(configuration))
            print_status(begun := job.detach(warn_of_input, followers(arguments)), as_json=arguments.json)
            if not arguments.json:
                its_command = command_of(begun)
                say(f"  `{its_command} --follow` shows it, `{its_command} --cancel` ends it", sys.stderr)
            return OK
        code = run(arguments, configuration, job, is_step=arguments.is_step)
        return code if job.remote is None else _delivered(job.remote, code, folders, tell)


def precheck(arguments: argparse.Namespace, configuration: Configuration, *, has_rows: bool) -> None:
    """Check a command without running it. `has_rows`: the input exists, so check it too. Raises as `run_bulk` does."""
    _check(arguments)
    values, configuration = _read_options(arguments), decided(configuration)
    if arguments.max_cost is not None:
        check_budget(values, configuration)
    if has_rows:
        folders = JobFolders.from_environ()
        with open_job(NamedRows(arguments.input), arguments.output, values, configuration, folders) as job:
            job.check()


def _rows_of(arguments: argparse.Namespace) -> Rows:
    """Return the rows that a command names. Only the beginning of standard input is read now."""
    if arguments.input != ["-"]:
        return NamedRows(arguments.input)
    blocks = iter(blocks_of_stdin(sys.stdin.fileno()))
    first = next(blocks)
    named = arguments.input_format.lstrip(".")
    return MadeRows(itertools.chain([first], blocks), suffix=f".{named}" if named else suffix_of(first))


def _read_options(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the options of a command by name, with prompts read from files."""
    values = _options_of(arguments)
    if isinstance(values["prompt"], list):
        values["prompt"] = _named_prompts(values["prompt"])
    elif arguments.prompt_file is not None:
        values["prompt"] = text_of("--prompt-file", arguments.prompt_file).removesuffix("\n")
    return values | {"system_prompt": arguments.system or ""}


def _check(arguments: argparse.Namespace) -> None:
    names, local = [*arguments.input, arguments.output], [name for name in arguments.input if not is_url(name)]
    later = arguments.detach or arguments.validate
    refuse(
        (local and len(local) < len(arguments.input), "INPUT", "has files and URLs; name only one of the two."),
        (is_url(arguments.output) and arguments.detach, "--detach", "needs a file as OUTPUT, not a URL."),
        ("-" in names and (later or arguments.shard), "`-`", "cannot be used with --detach, --dry-run or --shard."),
        ("-" in local and arguments.input[1:], "`-`", "(standard input) must be the only INPUT."),
        (arguments.output_format and arguments.output != "-", "--output-format", "works only if OUTPUT is `-`."),
    )
    check(_options_of(arguments), "stdin" if "-" in local else NamedRows(arguments.input).source, "flag")


def remembered(
    arguments: argparse.Namespace, command: Sequence[str], place: Path | None = None
) -> tuple[argparse.Namespace, list[Option]]:
    """Return `arguments`, in which options that are not given get their value from the earlier `command`.

    `place`: the folder of a command that others may have stored. Options that only the operator may set are then left
    out, and returned.
    """
    if not command:
        return arguments, []
    parser, left_out = Parser("promptmill bulk"), dict[str, Option]()
    add_bulk(parser)
    if place is not None:
        known = {option.name_on("flag"): option for option in options().values()}
        for action in parser._actions:
            if (option := known.get(next(reversed(action.option_strings), ""))) is not None and action.nargs != 0:
                action.type = _only_data(action, option, place, left_out)
    before = parser.parse_args(command[1:])
    for name in left_out:
        setattr(before, name, parser.get_default(name))
    own = {name: value for name, value in vars(arguments).items() if value is not False and value not in (None, [])}
    both = {**vars(before), **own, "set": [*before.set, *arguments.set], "json": arguments.json}
    return argparse.Namespace(**both), [option for name, option in left_out.items() if name not in own]


def _only_data(
    action: argparse.Action, option: Option, place: Path, left_out: dict[str, Option]
) -> Callable[[str], object]:
    """Return the type of an action that reads no value which only the operator may set, and adds it to `left_out`."""
    read: Any = action.type or str
    configures = option.name != "model" and any(not key.startswith(SAMPLING_KEYS) for key in option.keys)

    def kept(text: str) -> object:
        if not configures and not option.is_of_operator(text, place):  # prices and limits are part of a budget
            return read(text)
        left_out[action.dest] = option
        return None

    return kept


def _printed_name(arguments: argparse.Namespace) -> Path:
    return Path(f"answers.{arguments.output_format.lstrip('.') or 'jsonl'}")


def _printed(arguments: argparse.Namespace, configuration: Configuration, job: OpenJob, folder: Folder) -> int:
    """Run a job whose answers are printed to standard output in the order of the input. Return the exit code.

    A row is printed when it is answered; a table, whose columns depend on all rows, is printed at the end of the job.
    Messages go to stderr. A job that stopped is resumed when the same rows are given again.
    """
    name = _printed_name(arguments)
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        live = LiveOutput(out, name)
        code = run(arguments, configuration, job, live=live)
        if (made := folder.result) is not None and made.finished:
            if not live.has_written:
                with folder.reading() as store, compressed(out, compression_of(name)) as content:
                    spec = folder.spec_in(store)
                    rows = answered_rows(store, spec, every_answer, 0, end_of(store, job.order.limits.limit))
                    form = OutputForm([store], spec, format_of_output(name, spec.input.format))
                    if warning := write_rows(content, form, rows):
                        say(f"note: {warning}", sys.stderr, wrap=True)
            out.flush()
            shutil.rmtree(folder.path, ignore_errors=True)
    return code


def _validate(job: OpenJob, *, as_json: bool) -> int:
    """Print prompts, problems and cost. Return 0 if all rows are valid, else 1. Raises the errors of a job."""
    config, found = job.config, job.validate()
    if as_json:
        say(orjson.dumps(found).decode())
    else:
        start, own, end = _divided(found["prompts"], job.order.question.templates)
        for title, text in (
            ("all begin with", start),
            *((f"prompt {n}", each) for n, each in enumerate(own, 1)),
            ("all end with", end),
        ):
            if text:
                say(f"{title}:\n{textwrap.indent(_shortened(text), '  ')}\n")
        for problem in found["problems"]:
            say(problem)
        if found["invalid"] > len(found["problems"]):
            say(f"… and {found['invalid'] - len(found['problems'])} more")
        for note in found["notes"]:
            say(note, wrap=True)
        if different := found.get("different_prompts"):
            say(f"{counted(different, 'different prompt')}: --dedupe asks each once, at temperature 0", wrap=True)
        skipped = f", {found['skipped']} empty ones left out" if found.get("skipped") else ""
        sent = [(found["images"], "image"), *((count, NOUNS[kind]) for kind, count in found.get("files", {}).items())]
        uncounted = {"image", *(NOUNS[kind] for kind in found.get("uncounted", ()))}
        nouns = " and ".join(f"{noun}s" for count, noun in sent if count and noun in uncounted)
        without = f" without {nouns}" if nouns else ""
        if found["requests"] < found["answers"]:
            without += f" in {counted(found['requests'], 'request')}"
        say(
            f"{counted(found['rows'], 'row')}, {found['invalid']:,} of them invalid{skipped}, "
            f"{', '.join(counted(count, noun) for count, noun in sent)}, "
            f"about {found['estimated_prompt_tokens']:,} prompt tokens{without}",
            wrap=True,
        )
        if (names := found.get("columns")) is not None:
            say(f"columns: {', '.join([listed(names['input']), *names['added']])}", wrap=True)
        for line in _cost_lines(found, config, job.order.limits.max_cost):
            say(line, wrap=True)
    return int(found["invalid"] > 0)


def _cost_lines(found: Mapping[str, Any], config: ModelConfig, max_cost: float | None) -> Iterator[str]:
    yield from _taken_words(found)
    yield from _prices_words(found)
    if answered := _answered_words(found):
        yield answered
    if found.get("estimated_cost") is not None:
        every = "all rows together: " if answered else ""
        stops = "" if max_cost is None else f"; the job stops at {dollars(max_cost)}"
        yield f"{every}{_price_words(found)}{_alone_words(found)}{stops}"
        if found.get("batch_estimated_cost") is not None:
            yield f"by batch {_price_words(found, 'batch_')}"
    elif found["unpriced"]:
        yield worded(no_price_known(config, found["unpriced"]), option_of)


def _prices_words(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the price of each model, if there are several."""
    for name, price in found.get("prices", {}).items():
        of = price and f"{dollars(price['input'])} in and {dollars(price['output'])} out for a million tokens"
        yield f"{name}: {of or 'no price is known'}"


def _taken_words(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences about rows that reuse answers. The other figures of `found` leave these answers out."""
    of = f"of {counted(found['rows'], 'row')}"
    if (whole := found.get("taken")) is not None:
        yield f"{whole:,} {of} take the answers of another job; only the others are sent and priced"
    if (part := found.get("taken_in_part")) is not None:
        yield f"{part:,} {of} keep some answers; only their new questions are sent and priced"


def _answered_words(found: Mapping[str, Any]) -> str:
    """Return the number of answered rows and the cost of the other rows as a sentence; `""` if none are answered."""
    answered, left, cost = (found.get(name) for name in ("answered", "rows_left", "estimated_cost_left"))
    if answered is None:
        return ""
    if left is None:
        return f"{counted(answered, 'row')} answered before: unchanged ones are not sent again"
    of = f"{answered:,} of {counted(found['rows'], 'row')} answered"
    if not left:
        return f"{of}, and no other is left to send"
    return f"{of}; the {left:,} left" + (" are sent" if cost is None else f" cost about {dollars(cost)}")


def _price_words(found: Mapping[str, Any], way: str = "") -> str:
    """Return the likely and the highest price of a job as text. `way`: the prefix of the names in `found`."""
    each, source = found["estimated_completion_tokens"] / max(1, found["answers"]), found["estimated_completion_from"]
    length = counted(round(each), "token")
    answers = f" if an answer has {length}" if source == ASSUMED else f" with answers of {length}, {source}"
    range_ = [found.get(f"{way}least_estimated_cost"), found[f"{way}estimated_cost"]]
    likely = " to ".join(dict.fromkeys(dollars(cost) for cost in range_ if cost is not None))
    return f"about {likely}{answers if each else ''}; {_highest_words(found, way)}"


def _alone_words(found: Mapping[str, Any]) -> str:
    alone = found.get("estimated_cost_alone")
    return "" if alone is None else f"; each row alone: about {dollars(alone)}"


def _highest_words(found: Mapping[str, Any], way: str) -> str:
    most, limit = found[f"{way}most_cost"], found.get("advised_max_tokens")
    if found.get("may_search"):
        return "more with searches of the web"
    limits = (
        "" if limit is None or way else f"; --max-tokens {limit} limits the cost to {dollars(found['limited_cost'])}"
    )
    if most is None:
        return "the highest cost is not known" if found.get("uncounted") else f"nothing limits longer answers{limits}"
    once = most if way else found["most_cost_once"]
    longest = " if each answer is as long as it may be" if limits else ""
    refused = f", or {dollars(most)} if each answer is refused once" if once < most else ""
    return f"at most {dollars(once)}{longest}{refused}{limits}"


def _divided(prompts: Sequence[str], templates: Sequence[str]) -> tuple[str, list[str], str]:
    """Divide prompts: return the long beginning that all share (from the system prompt and the template), the rest of
    each prompt, and the shared end (of the template)."""
    template = templates[0] if len(templates) == 1 else ""
    if len(prompts) < 2 or "{%" in template or "{{" not in template:
        return "", [*prompts], ""
    start, end = template.partition("{{")[0].strip(), template.rpartition("}}")[2].strip()
    blocks = ["", *itertools.accumulate(prompts[0].split("\n\n"), "{}\n\n{}".format)]
    fixed_blocks = [block for block in blocks if all(prompt.startswith(block) for prompt in prompts)]
    start = prompts[0][: prompts[0].find(start) + len(start)] if start else fixed_blocks[-1]
    ends_alike = len(end) >= _LINE_SHOWN and all(prompt.rstrip().endswith(end) for prompt in prompts)
    starts_alike = len(start) >= _LINE_SHOWN and all(prompt.startswith(start) for prompt in prompts)
    start, end = start if starts_alike else "", end if ends_alike else ""
    return start, [prompt.removeprefix(start).rstrip().removesuffix(end).strip() for prompt in prompts], end


def _shortened(text: str) -> str:
    """Return the first and the last lines of a text."""
    lines, end = text.strip("\n").splitlines(), _LINES_SHOWN // 3
    if len(lines) > _LINES_SHOWN:
        more = f"… {len(lines) - _LINES_SHOWN:,} more lines …"
        lines = [*lines[: _LINES_SHOWN - end], more, *lines[-end:]]
    return "\n".join(cut_inside(line, _LINE_SHOWN) for line in lines)


def _tell(text: str, *, quiet: bool) -> None:
    if not quiet:
        print(f"promptmill: {text}", file=sys.stderr, flush=True)


def _delivered(output: RemoteOutput, code: int, folders: JobFolders, tell: Say) -> int:
    made = folders.of(output.local).result
    if made is None or not made.finished or not made.is_still(table_paths.stamp(output.local)):
        return code
    try:
        with _patient(redact(str(output.url)), tell):
            output.deliver(folders.of(output.local), tell)
    except PromptmillError as error:
        complain(f"{error} The same command writes it again.")
        return TRY_AGAIN
    return code


@contextlib.contextmanager
def _patient(url: str, tell: Say) -> Iterator[None]:
    """Report every few seconds that the store of `url` has not answered: its library may retry silently for minutes."""
    over, began = threading.Event(), time.monotonic()

    def repeat() -> None:
        while not over.wait(_SAID_EVERY_S):
            tell(f"still waiting for {url} ({time.monotonic() - began:.0f} s); Ctrl-C ends it")

    telling = threading.Thread(target=repeat, daemon=True)
    telling.start()
    try:
        yield
    finally:
        over.set()
        telling.join()
