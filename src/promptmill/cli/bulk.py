"""`promptmill bulk`: a file answered into another, in the foreground, through pipes, or detached."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from promptmill.backends import registry, rows
from promptmill.cli import options
from promptmill.cli.job_display import print_status, progress_display
from promptmill.cli.options import Parser, Several, add_shared, amount, at_least_one, is_url, note_once, text_of
from promptmill.cli.terminal import OK, SOME_FAILED, TERMINATED, TRY_AGAIN, USAGE, complain, say
from promptmill.config.loading import Configuration
from promptmill.config.parameter_file import is_shipped
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, PromptmillError, config_error, input_error, redact
from promptmill.core.money import dollars
from promptmill.core.wording import counted
from promptmill.jobs.files import spool
from promptmill.jobs.manage import detached, prune
from promptmill.jobs.manage.compared_files import MODEL, VARIANT
from promptmill.jobs.run import admission
from promptmill.jobs.run.admission import Job
from promptmill.jobs.run.partial_output import LiveOutput
from promptmill.jobs.run.runner import Runner, until_ended
from promptmill.jobs.store import given_rows, status
from promptmill.jobs.store.folder import JobFolders
from promptmill.jobs.store.given_rows import GivenRows, RemoteOutput, fetched
from promptmill.jobs.store.spec import JobRequest, cluster_of, stamp
from promptmill.service import choosing
from promptmill.service.service import Service
from promptmill.system import runtime
from promptmill.system.installation import command_for
from promptmill.system.safe_open import real_path

# Assignments that may hold a key, unless the value is a variable's name.
_SECRET, _REFERENCE = re.compile(r"api_key(?!_env)|headers|token(?!s)"), re.compile(r"[\w.]+=\$\{\w+\}")
_OF_FILES = ("--schema", "--report")  # of a command that is remembered
_TIERS = ("default", "flex", "priority")
_AGAIN = ("failed", "truncated", "all")
_OF_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}
_SAID_EVERY_S = 10.0
_NAMED = re.compile(r"([\w.-]{1,40})=(.*)", re.DOTALL)
# A new job that ends so is removed, unless it has one of `_KEPT`: a typo leaves nothing.
_TYPOS = frozenset({Code.INVALID_CONFIG, Code.INVALID_INPUT, Code.MISSING_DEPENDENCY, Code.NOT_FOUND})
_KEPT = ("done", "prompt_tokens", "cost", "cost_set_aside")


def add_options(bulk: Parser) -> None:
    """Add the options of the command."""
    bulk.add_argument(
        "input",
        nargs="+",
        metavar="INPUT",
        help=".jsonl, .json, .txt, .csv, .tsv, .parquet, .gz and .zst of them; folders, patterns, URLs; several; -",
    )
    bulk.add_argument(
        "output", metavar="OUTPUT", help="written atomically when all rows are done, in input order; or -"
    )
    group = bulk.add_argument_group("prompts")
    asked = group.add_mutually_exclusive_group()
    asked.add_argument(
        "--prompt",
        action=Several,
        metavar="TEXT",
        help="what to ask of each row, such as 'Classify: {{text}}'; several, NAME=TEXT, are compared",
    )
    asked.add_argument("--prompt-file", type=Path, metavar="FILE", help="the same, from a file")
    asked.add_argument("--prompt-column", metavar="NAME", help="the field or column to ask, if not `prompt`")
    group.add_argument("--system", default="", metavar="TEXT", help="system prompt above every row")
    group.add_argument("--image-column", metavar="NAME", help="the column of image paths or URLs, with --prompt")
    group.add_argument(
        "--row-settings", action="store_true", help="with --prompt, --prompt-column: rows set their model, system, …"
    )
    group.add_argument("--skip-empty", action="store_true", help="leave out rows that ask nothing; else they fail")
    group = bulk.add_argument_group("answers")
    options.add_answer_form(group)
    group.add_argument(
        "--no-fields", dest="fields", action="store_false", help="with --schema: a JSON text, not a column per field"
    )
    group.add_argument("--answer-column", default="answer", metavar="NAME", help="the column of the answers")
    add_shared(bulk, several=True)
    group = bulk.add_argument_group("files")
    group.add_argument("--input-format", default="", metavar="NAME", help="of stdin, unless it is JSON: txt, csv.gz, …")
    group.add_argument(
        "--encoding", type=_encoding, metavar="NAME", help="of CSV, TSV and text, if not UTF-8: latin-1, cp1252, …"
    )
    group.add_argument("--output-format", default="", metavar="NAME", help="on stdout: jsonl, json, csv, …")
    group.add_argument("--overwrite", action="store_true", help="replace OUTPUT even if the job did not make it")
    group.add_argument("--state", type=Path, metavar="DIR", help="keep the job in DIR instead of beside OUTPUT")
    group = bulk.add_argument_group("limits")
    group.add_argument("--limit", type=at_least_one, metavar="N", help="only the first N rows")
    group.add_argument("--max-cost", type=amount, metavar="AMOUNT", help="most that all runs of the job may spend")
    group.add_argument("--max-failures", metavar="N|P%", help="stop when more rows than this have failed")
    group.add_argument("--tier", choices=_TIERS, help="service tier; flex: half the price, slower, waits for capacity")
    group.add_argument("--dedupe", action="store_true", help="send identical rows at temperature 0 once")
    group = bulk.add_argument_group("a job that has answers")
    group.add_argument(
        "--again", choices=_AGAIN, help="send these rows again; their answers stay until the new ones are there"
    )
    group.add_argument(
        "--keep", action="store_true", help="count answers made under other settings, which later rows note"
    )
    group.add_argument("--from", dest="from_job", metavar="JOB", help="use the answers of another job or output, too")
    group = bulk.add_argument_group("the run")
    group.add_argument("--validate", action="store_true", help="check every row and estimate tokens; send nothing")
    group.add_argument("--detach", action="store_true", help="run in the background; see `promptmill jobs`")
    group.add_argument("--quiet", action="store_true", help="show no progress")
    group.add_argument("--report", type=Path, metavar="FILE", help="write a report, one HTML file, at the end")
    group.add_argument("--json", action="store_true", help="print the result as JSON")
    group = bulk.add_argument_group("several machines")
    group.add_argument("--shard", metavar="I/N", help="only this part of the rows, for `promptmill join OUTPUT`")
    group.add_argument("--ray", metavar="ADDRESS", help="answer on a Ray cluster: HOST:PORT, or auto")
    group.add_argument("--replicas", type=at_least_one, default=1, metavar="N", help="with --ray: so many of the model")
    group.add_argument("--num-gpus", type=float, default=0, metavar="N", help="with --ray: GPUs of each replica")
    group.add_argument("--num-cpus", type=float, default=1, metavar="N", help="with --ray: cores of each replica")
    bulk.show_examples(
        "promptmill bulk reviews.csv labels.csv --prompt 'Is this positive? {{text}}' "
        "--choices positive,negative,neutral",
        "promptmill bulk orders.txt orders.csv --prompt 'Extract the order: {{text}}' --schema order.json",
        "promptmill bulk pictures.csv captions.csv --prompt 'Describe the picture.' --image-column path",
        "promptmill bulk reviews.csv labels.csv --prompt 'Is this positive? {{text}}' --model small-1 --model good-1",
        "promptmill bulk reviews.csv labels.csv --prompt a='Is it good? {{text}}' --prompt b='Classify: {{text}}'",
        "promptmill bulk prompts.jsonl answers.jsonl --limit 20      # the same command without --limit does the rest",
    )
    bulk.set_defaults(command=_run)


def _encoding(text: str) -> str:
    try:
        "".encode(text)
    except (LookupError, ValueError):
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no encoding; use latin-1, cp1252, utf-16, …") from None
    return text


def _run(arguments: argparse.Namespace, configuration: Configuration) -> int:
    if any(map(is_url, [*arguments.input, arguments.output])):
        return _run_urls(arguments, configuration)
    return _run_files(arguments, configuration)


@dataclass(frozen=True, slots=True)
class _Grid:
    """Several requests for each row: one for each model, prompt, or pair of both; `names` has their names."""

    models: Mapping[str, str]
    """The model of each way; empty for the same model."""
    template: str | None
    names: tuple[str, ...]

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> _Grid | None:
        """Return the grid that several `--model` and `--prompt` make. Raises `PromptmillError` (`invalid_config`)."""
        models = list(dict.fromkeys(getattr(arguments, "models", None) or []))
        prompts = list(dict.fromkeys(getattr(arguments, "prompts", None) or []))
        if len(models) < 2 and len(prompts) < 2:
            return None
        if "-" in (*arguments.input, arguments.output) or any(map(is_url, (*arguments.input, arguments.output))):
            raise config_error("", "Several models or prompts go with files, not with `-` and URLs.")
        if arguments.shard:
            raise config_error("--shard", "goes without several models or prompts.")
        texts = _named_prompts(prompts) if len(prompts) > 1 else {}
        ways = {
            "/".join(filter(None, (model if len(models) > 1 else "", name))): (model, name)
            for model in models or [""]
            for name in texts or [""]
        }
        template = _template(arguments)
        if texts:
            whens = "".join(
                f"{{% {'elif' if at else 'if'} {VARIANT} in "
                f"{orjson.dumps([way for way, (_, its) in ways.items() if its == name]).decode()} %}}{text}"
                for at, (name, text) in enumerate(texts.items())
            )
            template = f"{whens}{{% endif %}}"
        return cls({way: model for way, (model, _) in ways.items()} if len(models) > 1 else {}, template, tuple(ways))

    def changes(self, order: JobRequest, arguments: argparse.Namespace) -> dict[str, Any]:
        """Return the fields of the order that change: its input is a file of the rows, once for each way."""
        return {
            "input": GivenRows.write(
                JobFolders.from_environ(), self.rows(arguments), ".jsonl", order.input.stem or "rows"
            ).input,
            "more": (),
            "encoding": None,
            "urls": {"input_file": str(order.input)},
            "prompt_template": order.prompt_template if self.template is None else self.template,
            "row_settings": order.row_settings or bool(self.models),
            "limit": None if order.limit is None else order.limit * len(self.names),
            "variants": self.names,
        }

    def rows(self, arguments: argparse.Namespace) -> Iterator[bytes]:
        """Yield each row of the inputs once for each way. Raises `PromptmillError` (`invalid_input`)."""
        columns = {VARIANT, *([MODEL] if self.models else [])}
        read = rows.SETTINGS if self.models and not arguments.row_settings else frozenset()
        for name in arguments.input:
            for number, row in enumerate(spool.objects_in(Path(name).expanduser(), arguments.encoding, strict=True), 1):
                if taken := sorted((columns | (read if self.template else frozenset())) & row.keys()):
                    named = ", ".join(f"`{one}`" for one in taken)
                    raise input_error(f"{name}: the columns {named} mean the model and settings of a row; rename them.")
                for way in self.names:
                    its = {MODEL: self.models[way]} if self.models else {}
                    try:
                        yield orjson.dumps({**row, **its, VARIANT: way}, default=str, option=orjson.OPT_APPEND_NEWLINE)
                    except TypeError as error:
                        raise input_error(f"{name}, row {number} cannot be written as JSON: {error}.") from None


def _named_prompts(prompts: Sequence[str]) -> dict[str, str]:
    """Return the texts of several `--prompt NAME=TEXT`. Raises `PromptmillError` (`invalid_config`)."""
    found = {}
    for prompt in prompts:
        named = _NAMED.fullmatch(prompt)
        if named is None or named[1] in found:
            why = "needs a name" if named is None else f"has the name {named[1]} twice"
            raise config_error(
                "--prompt", f"{why}; several are written NAME=TEXT, such as 'short=Classify: {{{{text}}}}'."
            )
        found[named[1]] = named[2]
    return found


def _run_files(arguments: argparse.Namespace, configuration: Configuration) -> int:
    if arguments.report is not None:
        _check_report(arguments)
    grid = _Grid.of(arguments)
    other = JobFolders.from_environ().at(arguments.from_job).database if arguments.from_job else None
    if not arguments.validate:
        registry.check_key(configuration.plan)
    # a shell leaves a quoted ~ alone
    inputs, output = [Path(name).expanduser() for name in arguments.input], Path(arguments.output).expanduser()
    order = JobRequest(
        input=inputs[0].absolute(),
        more=[path.absolute() for path in inputs[1:]],
        output=output,
        urls=getattr(arguments, "urls", {}),
        command=remembered_command(arguments.given, configuration),
        encoding=arguments.encoding,
        prompt_template=_template(arguments),
        image_column=arguments.image_column,
        prompt_column=arguments.prompt_column,
        answer_column=arguments.answer_column,
        fields=arguments.fields,
        row_settings=arguments.row_settings,
        skip_empty=arguments.skip_empty,
        system_prompt=arguments.system,
        limit=arguments.limit,
        max_failures=arguments.max_failures,
        max_cost=arguments.max_cost,
        dedupe=arguments.dedupe,
        again=arguments.again,
        keep=arguments.keep,
        from_job=other,
        overwrite=arguments.overwrite,
        shard=arguments.shard,
        ray=cluster_of(arguments.ray, arguments.replicas, arguments.num_gpus, arguments.num_cpus),
    )
    if grid is not None:
        order = order.model_copy(update=grid.changes(order, arguments))
    if arguments.input_format and Path("-") not in inputs:
        raise config_error("--input-format", "goes with `-` as INPUT alone; a file is read by its suffix.")
    if arguments.output_format and output != Path("-"):
        raise config_error("--output-format", "goes with `-` as OUTPUT alone; a file is written by its suffix.")
    if Path("-") in {output, *inputs}:
        if arguments.detach or arguments.validate or arguments.shard or (Path("-") in inputs and inputs[1:]):
            raise config_error("", "`-` goes without --detach, --validate, --shard and further inputs.")
        return _piped(arguments, configuration, order)
    if arguments.validate:
        return _validate(configuration.plan, order, as_json=arguments.json)
    if arguments.detach:
        return _detach(configuration, order, as_json=arguments.json)
    return run_and_compare(arguments, configuration, order)


def run_and_compare(
    arguments: argparse.Namespace, configuration: Configuration, order: JobRequest, *, fixed: bool = False
) -> int:
    """Do what `run` does, and show a comparison where each row was sent in several ways."""
    code = run(arguments, configuration, order, fixed=fixed)
    if order.variants and not arguments.json:
        from promptmill.cli.compare import show_variants  # other jobs do not need it

        show_variants(order.output)
    return code


def _check_report(arguments: argparse.Namespace) -> None:
    """Raise `PromptmillError` before anything is sent, unless a report can be written at the end."""
    from promptmill.jobs.manage import report  # imported where it is needed: few jobs write one

    if arguments.detach or arguments.validate:
        raise config_error("--report", "goes without --detach and --validate; `promptmill report OUTPUT` writes one.")
    report.check(arguments.report)


def _write_report(arguments: argparse.Namespace, job: Job, *, on_stderr: bool) -> None:
    """Write the report that `arguments` ask for, if they do and the job was not a typo."""
    if getattr(arguments, "report", None) is None or not job.folder.database.exists():
        return
    from promptmill.jobs.manage import report  # imported where it is needed, as above

    try:
        say(str(report.write(job.folder, arguments.report)), sys.stderr if on_stderr or arguments.json else sys.stdout)
    except PromptmillError as error:  # the answers are there all the same
        complain(str(error))


def remembered_command(given: Sequence[str], configuration: Configuration) -> list[str]:
    """Return a command line for a run from any folder, without keys: a job goes on with it by its id."""
    words, found = iter(given), []
    for word in words:
        option, equals, value = word.partition("=")
        if option not in {"--set", "--config", *_OF_FILES}:
            found.append(redact(word))
            continue
        value = value if equals else next(words)
        if option in _OF_FILES:
            found += [option, str(Path(value).absolute())]
        elif option == "--set" and (_SECRET.search(value) is None or _REFERENCE.fullmatch(value)):
            found += [option, redact(value)]
    file = Path(configuration.origin).absolute()
    return found if is_shipped(file) or not file.is_file() else [*found, "--config", str(file)]


def remembered(arguments: argparse.Namespace, command: Sequence[str]) -> argparse.Namespace:
    """Return `arguments`, and those of the earlier `command` for options that are not given."""
    if not command:
        return arguments
    parser = Parser("promptmill bulk")
    add_options(parser)
    before = parser.parse_args(command[1:])
    own = {name: value for name, value in vars(arguments).items() if value not in (None, [])}
    return argparse.Namespace(**{**vars(before), **own, "set": [*before.set, *arguments.set], "json": arguments.json})


def _template(arguments: argparse.Namespace) -> str | None:
    """Return the template of `--prompt` or `--prompt-file`. Raises `PromptmillError`."""
    file: Path | None = arguments.prompt_file
    if file is None:
        return str(arguments.prompt) if arguments.prompt is not None else None
    return text_of("--prompt-file", file).removesuffix("\n")


def _detach(configuration: Configuration, order: JobRequest, *, as_json: bool) -> int:
    """Start a job in a process of its own, or go on with it."""
    configuration = decided(configuration)
    folders = JobFolders.from_environ()
    job = admission.admit(order, configuration.plan, folders)
    try:
        _warn_of_input(job)
        if not job.finished:
            status.write_starting(job.folder)
            detached.start(job, folders)
    finally:
        job.close()
    print_status(status.read(job.folder), as_json=as_json)
    return OK


def _piped(arguments: argparse.Namespace, configuration: Configuration, order: JobRequest) -> int:
    """Run a job whose input or output, named `-`, is standard input or output. Returns as `run` does.

    Its answers are printed as they come, in input order; those of a table, whose columns depend on all of them, at its
    end. What is said of it goes to stderr. A job that stops is gone on with when the same rows come again.
    """
    folders, plan = JobFolders.from_environ(), configuration.plan
    given = None
    if order.input.name == "-":
        blocks = iter(given_rows.blocks_of_stdin(sys.stdin.fileno()))
        first = next(blocks)
        named = arguments.input_format.lstrip(".")
        suffix = f".{named}" if named else given_rows.suffix_of(first)
        given = GivenRows.write(folders, itertools.chain([first], blocks), suffix)
        order = order.model_copy(update={"input": given.input})
    if order.output.name != "-":
        code = run(arguments, configuration, order)
        if given is not None and code in {OK, SOME_FAILED}:
            given.forget()
        return code
    if given is None:
        seen = real_path(order.input)
        found = [str(seen), *(map(str, order.more)), repr(stamp(seen))]
        given = GivenRows.write(folders, [orjson.dumps(found)], ".input")
    output = given.output(plan, order, f".{arguments.output_format.lstrip('.') or 'jsonl'}")
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        live = LiveOutput(out)
        code = run(arguments, configuration, order.model_copy(update={"output": output}), live=live)
        if output.exists():
            if not live.has_written:
                given_rows.copy_out(output, out)
            given.forget(output)
    return code


def run(
    arguments: argparse.Namespace,
    configuration: Configuration,
    order: JobRequest,
    *,
    live: LiveOutput | None = None,
    fixed: bool = False,
    is_step: bool = False,
) -> int:
    """Run a job in the foreground, or go on with it, as the options `json` and `quiet` say.

    `live` gets the answers while it runs, and stderr all else. `fixed`: see `admission.admit`. `is_step`: the job is a
    part of another command, which has stdout; of a job that finishes, only the progress is shown.

    Returns 0 when all rows are answered, 1 when not, 75 when it stopped and the same command may help later.
    """
    configuration, as_json, on_stderr = decided(configuration), arguments.json, live is not None or is_step
    folders = JobFolders.from_environ()
    job = admission.admit(order, configuration.plan, folders, fixed=fixed)
    quiet = getattr(arguments, "quiet", False)
    if not quiet:
        note_once(configuration.plan)

    def tell(found: Mapping[str, Any], *, again: bool = True) -> None:
        if is_step and found["state"] == status.FINISHED and not found.get("failed"):
            return
        found = {**found, "alive": False}
        print_status(found, job.folder, order, as_json=as_json, on_stderr=on_stderr, again=again)

    try:
        about = status.read(job.folder)
        _warn_of_input(job)
        if job.finished:
            if not as_json and not is_step:
                print(f"promptmill: job {job.spec.job_id} is finished already.{_kept(job)}", file=sys.stderr)
            tell(about)
            return SOME_FAILED if about.get("failed") else OK
        try:
            found, error, terminated = runtime.run(_job_run(configuration, job, live, as_json=as_json, quiet=quiet))
        except KeyboardInterrupt:
            tell(status.read(job.folder))
            raise
        if error is not None:
            found = found | {"reason": _reason(error, arguments, configuration)}
        is_typo = _is_typo(error, job, found)
        if is_typo:
            job.folder.close()
            folders.unregister(job.folder)
            prune.remove(job.folder)
        has_answers = not is_typo and job.folder.path.exists()
        if as_json or has_answers:
            tell(about | found, again=error is None or error.retryable)
        else:
            complain(found["reason"])
    finally:
        _write_report(arguments, job, on_stderr=on_stderr)
        job.close()
    return TERMINATED if terminated else _exit_code(found, error)


def _exit_code(found: Mapping[str, Any], error: PromptmillError | None) -> int:
    if error is not None and error.code in _TYPOS - {Code.NOT_FOUND}:
        return USAGE
    if error is not None and error.retryable:
        return TRY_AGAIN
    return OK if found["state"] == status.FINISHED and not found["failed"] else SOME_FAILED


def _is_typo(error: PromptmillError | None, job: Job, found: Mapping[str, Any]) -> bool:
    """Return whether a typo has ended a new job before it did anything, so that it leaves nothing."""
    is_wrong = error is not None and error.code in _TYPOS and job.before is None
    return is_wrong and not any(found.get(name) for name in _KEPT)


def _warn_of_input(job: Job) -> None:
    """Print a warning if cells are paths of images, but no image is sent; or if lines of several texts are the rows."""
    spec = job.spec
    if job.finished:
        return
    if spec.input_format == "txt" and len(spec.parts) > 1:
        said = (
            f"each line of the {len(spec.parts):,} text files is a row; for whole files, write a table of their texts"
        )
        say(f"warning: {said}", sys.stderr, wrap=True)
    if spec.image_column is not None:
        return
    if column := spool.unsent_image(job.input, spec.input_format):
        said = f"the cells of {column} are paths of images, but no image is sent; to send them: --image-column {column}"
        say(f"warning: {said}", sys.stderr, wrap=True)


def _reason(error: PromptmillError, arguments: argparse.Namespace, configuration: Configuration) -> str:
    """Return why a job stopped, with the options and files that its user has named."""
    if meant := runtime.run(choosing.meant_model(configuration.plan, error, "--model NAME")):
        return f"{error.message} {meant[0].upper()}{meant[1:]}"
    return redact(options.explained(error, arguments, configuration).worded(options.option_of))


def decided(configuration: Configuration) -> Configuration:
    """Return the configuration with backend and model, which are part of a job."""
    if not configuration.plan.is_open:
        return configuration
    return runtime.run(choosing.decided(configuration))


def _kept(job: Job) -> str:
    """Return a sentence about an output that holds more rows than this order wants, else `""`."""
    result, limit = job.folder.result, job.order.limit
    if limit is None or result is None or result.limit == limit:
        return ""
    held = result.limit
    rows = "all rows" if held is None else counted(held, "row")
    return f" Its output already holds {rows}, and is left unchanged."


async def _job_run(
    configuration: Configuration,
    job: Job,
    live: LiveOutput | None,
    *,
    as_json: bool,
    quiet: bool,
) -> tuple[dict[str, Any], PromptmillError | None, bool]:
    create = None if job.order.ray is None else job.order.ray.create
    service = Service(configuration, plan=job.plan, create=create)
    try:
        with progress_display(job.spec.job_id, as_json=as_json, quiet=quiet) as watch:
            runner = Runner(job, service, watch=watch, live=live)
            return await until_ended(runner)
    finally:
        await service.aclose()


def _validate(plan: ResolvedConfig, order: JobRequest, *, as_json: bool) -> int:
    """Print the findings. Returns 0 when every row can be sent, else 1. Raises `PromptmillError` as a job would."""
    from promptmill.jobs.run.validation import check  # imports the readers of images

    found = check(plan, order)
    if as_json:
        say(orjson.dumps(found).decode())
    else:
        for problem in found["problems"]:
            say(problem)
        if found["invalid"] > len(found["problems"]):
            say(f"… and {found['invalid'] - len(found['problems'])} more")
        for note in found["notes"]:
            say(note, wrap=True)
        skipped = f", {found['skipped']} empty ones left out" if found.get("skipped") else ""
        say(
            f"{found['rows']} rows, {found['invalid']} of them invalid{skipped}, {found['images']} images, "
            f"about {found['estimated_prompt_tokens']:,} prompt tokens without {_left_out(found)}",
            wrap=True,
        )
        if (cost := found.get("estimated_cost")) is not None:
            most = found["most_cost"]
            answers = ", more with the answers" if most is None else f", at most {dollars(most)} with the answers"
            say(f"about {dollars(cost)} for the prompts{answers}")
        elif _is_paid(plan):
            listed = "" if find_spec("genai_prices") else f", or install the list of prices: {command_for('prices')}"
            say(
                f"no price is known for {plan.model or 'the model'}: `price:` in the configuration, or --set "
                f"'price={{input: 1, output: 2}}', says what a million tokens cost in US dollars{listed}",
                wrap=True,
            )
    return int(found["invalid"] > 0)


def _left_out(found: Mapping[str, Any]) -> str:
    return "images and what the chat template adds" if found["images"] else "what the chat template adds"


def _is_paid(plan: ResolvedConfig) -> bool:
    """Return whether an endpoint is not a server of this machine."""
    return any(url.hostname not in _OF_THIS_MACHINE for url in registry.addresses(plan))


def _run_urls(arguments: argparse.Namespace, configuration: Configuration) -> int:
    """Fetch inputs, run the job on copies, and put its output where it belongs; returns as `run` does."""

    def tell(text: str) -> None:
        if not arguments.quiet:
            print(f"promptmill: {text}", file=sys.stderr, flush=True)

    if arguments.shard:
        raise config_error("--shard", "goes with files that all machines see, not with URLs.")
    folders, output = JobFolders.from_environ(), None
    urls = [text for text in arguments.input if is_url(text)]
    if urls and len(urls) < len(arguments.input):
        raise config_error("INPUT", "name either files or URLs.")
    arguments.urls = {}
    try:
        if is_url(arguments.output):
            if arguments.detach:
                raise config_error("OUTPUT", "a URL goes without --detach.")
            output = RemoteOutput.of(folders, arguments.output)
            arguments.urls["output_file"] = redact(arguments.output)
            if not arguments.validate:
                with _patient(redact(arguments.output), tell):
                    output.check(may_replace=arguments.overwrite)
        if urls:
            arguments.urls["input_file"] = redact(urls[0])
            with _patient(redact(urls[0]), tell):
                arguments.input = [str(fetched(folders, urls, tell))]
    except PromptmillError as error:
        if error.code is not Code.STORAGE:
            raise
        complain(str(error))
        return TRY_AGAIN
    if output is None:
        return _run_files(arguments, configuration)
    arguments.output = str(output.local)
    code = _run_files(arguments, configuration)
    made = folders.of(Path(arguments.input[0]), output.local).result
    if arguments.validate or made is None or not made.finished or not made.is_still(output.local):
        return code
    try:
        with _patient(redact(str(output.url)), tell):
            output.deliver(tell)
    except PromptmillError as error:
        complain(f"{error} The same command writes it again.")
        return TRY_AGAIN
    return code


@contextlib.contextmanager
def _patient(url: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Say every few seconds that the store behind `url` is waited for: its library may try for minutes in silence."""
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
