"""`promptmill bulk`: a file answered into another, in the foreground, through pipes, or detached."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson

from promptmill.backends import registry
from promptmill.cli.options import SCHEMA, Parser, add_shared, amount, at_least_one, is_url, option_of, text_of
from promptmill.cli.terminal import say
from promptmill.cluster import replicas
from promptmill.cluster.ray_cluster import RayCluster
from promptmill.config.loading import Configuration
from promptmill.core.errors import Code, OrderError, PromptmillError, config_error
from promptmill.core.money import dollars
from promptmill.core.wording import counted
from promptmill.jobs.manage import detached
from promptmill.jobs.manage.progress_text import progress_events, progress_lines
from promptmill.jobs.run import admission
from promptmill.jobs.run.admission import Job
from promptmill.jobs.run.partial_output import LiveOutput
from promptmill.jobs.run.runner import Runner, Watch, until_ended
from promptmill.jobs.store import given_rows, status
from promptmill.jobs.store.folder import Folder, JobFolders
from promptmill.jobs.store.given_rows import GivenRows
from promptmill.jobs.store.spec import PART, JobRequest, stamp
from promptmill.service import choosing
from promptmill.service.service import Service
from promptmill.system import runtime
from promptmill.system.safe_open import real_path

_TIERS = ("default", "flex", "priority")
_AGAIN = ("failed", "truncated", "all")
_GO_ON = "  go on with the same command; what is answered is kept"
_OF_THE_FILE = frozenset({Code.INVALID_INPUT, Code.EMPTY_PROMPT, Code.INVALID_IMAGE})
OK, SOME_FAILED, USAGE, TRY_AGAIN, TERMINATED = 0, 1, 2, 75, 143


def add_options(bulk: Parser) -> None:
    """Add the options of the command."""
    add_shared(bulk)
    bulk.add_argument(
        "input",
        nargs="+",
        metavar="INPUT",
        help=".jsonl, .json, .txt, .csv, .tsv, .parquet, .gz and .zst of them; folders, patterns, URLs; several; -",
    )
    bulk.add_argument(
        "output", metavar="OUTPUT", help="written atomically when all rows are done, in input order; or -"
    )
    bulk.add_argument("--input-format", default="", metavar="NAME", help="of stdin, unless it is JSON: txt, csv.gz, …")
    bulk.add_argument("--output-format", default="jsonl", metavar="NAME", help="on stdout: jsonl, json, csv, …")
    asked = bulk.add_mutually_exclusive_group()
    asked.add_argument("--prompt", metavar="TEXT", help="what to ask of each row, such as 'Classify: {{text}}'")
    asked.add_argument("--prompt-file", type=Path, metavar="FILE", help="the same, from a file")
    asked.add_argument("--prompt-column", metavar="NAME", help="the field or column to ask, if not `prompt`")
    bulk.add_argument("--answer-column", default="answer", metavar="NAME", help="the column of the answers")
    bulk.add_argument(
        "--row-settings", action="store_true", help="with --prompt, --prompt-column: rows set their model, system, …"
    )
    bulk.add_argument("--skip-empty", action="store_true", help="leave out rows that ask nothing; else they fail")
    bulk.add_argument("--system", default="", metavar="TEXT", help="system prompt above every row")
    bulk.add_argument("--schema", type=Path, metavar="FILE", help=SCHEMA)
    bulk.add_argument("--limit", type=at_least_one, metavar="N", help="only the first N rows")
    bulk.add_argument("--shard", metavar="I/N", help="only this part of the rows, for `promptmill join OUTPUT`")
    bulk.add_argument("--ray", metavar="ADDRESS", help="answer on a Ray cluster: HOST:PORT, or auto")
    bulk.add_argument("--replicas", type=at_least_one, default=1, metavar="N", help="with --ray: so many of the model")
    bulk.add_argument("--num-gpus", type=float, default=0, metavar="N", help="with --ray: GPUs of each replica")
    bulk.add_argument("--num-cpus", type=float, default=1, metavar="N", help="with --ray: cores of each replica")
    bulk.add_argument("--max-cost", type=amount, metavar="AMOUNT", help="most that all runs of the job may spend")
    bulk.add_argument("--tier", choices=_TIERS, help="service tier; flex: half the price, slower, waits for capacity")
    bulk.add_argument("--max-failures", metavar="N|P%", help="stop when more rows than this have failed")
    bulk.add_argument("--dedupe", action="store_true", help="send identical rows at temperature 0 once")
    bulk.add_argument(
        "--again", choices=_AGAIN, help="send these rows again; their answers stay until the new ones are there"
    )
    bulk.add_argument(
        "--keep", action="store_true", help="count answers made under other settings, which later rows note"
    )
    bulk.add_argument("--from", dest="from_job", metavar="JOB", help="use the answers of another job or output, too")
    bulk.add_argument("--overwrite", action="store_true", help="replace OUTPUT even if the job did not make it")
    bulk.add_argument("--state", type=Path, metavar="DIR", help="keep the job in DIR instead of beside OUTPUT")
    bulk.add_argument("--quiet", action="store_true", help="show no progress")
    bulk.add_argument("--detach", action="store_true", help="run in the background; see `promptmill jobs`")
    bulk.add_argument("--validate", action="store_true", help="check every row and estimate tokens; send nothing")
    bulk.add_argument("--json", action="store_true", help="print the result as JSON")
    bulk.set_defaults(command=_run)


def _run(arguments: argparse.Namespace, configuration: Configuration) -> int:
    if any(map(is_url, [*arguments.input, arguments.output])):
        from promptmill.cli import remote

        return remote.bulk(arguments, configuration, _run_files)
    return _run_files(arguments, configuration)


def _run_files(arguments: argparse.Namespace, configuration: Configuration) -> int:
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
        prompt_template=_template(arguments),
        prompt_column=arguments.prompt_column,
        answer_column=arguments.answer_column,
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
        ray=_replication(arguments),
    )
    if Path("-") in {output, *inputs}:
        if arguments.detach or arguments.validate or arguments.shard or (Path("-") in inputs and inputs[1:]):
            raise config_error("-", "goes without --detach, --validate, --shard and further inputs.")
        return _piped(
            configuration,
            order,
            input_format=arguments.input_format,
            output_format=arguments.output_format,
            as_json=arguments.json,
            quiet=arguments.quiet,
        )
    if arguments.validate:
        from promptmill.cli import validate

        return validate.run(configuration.plan, order, as_json=arguments.json)
    if arguments.detach:
        return _detach(configuration, order, as_json=arguments.json)
    return run(configuration, order, as_json=arguments.json, quiet=arguments.quiet)


def _replication(arguments: argparse.Namespace) -> RayCluster | None:
    """Return the cluster of `--ray` and its options, None without it. Raises `PromptmillError`."""
    if arguments.ray is not None:
        return RayCluster(arguments.ray, arguments.replicas, arguments.num_gpus, arguments.num_cpus)
    if (arguments.replicas, arguments.num_gpus, arguments.num_cpus) != (1, 0, 1):
        raise config_error("--replicas", "and --num-gpus, --num-cpus go with --ray ADDRESS alone.")
    return None


def _template(arguments: argparse.Namespace) -> str | None:
    """Return the template of `--prompt` or `--prompt-file`. Raises `PromptmillError`."""
    file: Path | None = arguments.prompt_file
    if file is None:
        return str(arguments.prompt) if arguments.prompt is not None else None
    return text_of("--prompt-file", file).removesuffix("\n")


def _detach(configuration: Configuration, order: JobRequest, *, as_json: bool) -> int:
    """Start a job in a process of its own, or go on with it."""
    configuration = _decided(configuration)
    folders = JobFolders.from_environ()
    job = admission.admit(order, configuration.plan, folders)
    try:
        if not job.finished:
            status.write_starting(job.folder)
            detached.start(job, folders)
    finally:
        job.close()
    tell(status.read(job.folder), as_json=as_json)
    return OK


def _piped(
    configuration: Configuration,
    order: JobRequest,
    *,
    input_format: str,
    output_format: str,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run a job whose input or output, named `-`, is standard input or output. Returns as `run` does.

    Its answers are printed as they come, in input order; those of a table, whose columns depend on all of them, at its
    end. What is said of it goes to stderr. A job that stops is gone on with when the same rows come again.
    """
    folders, plan = JobFolders.from_environ(), configuration.plan
    given = None
    if order.input.name == "-":
        blocks = iter(given_rows.blocks_of_stdin(sys.stdin.fileno()))
        first = next(blocks)
        suffix = f".{input_format.lstrip('.')}" if input_format else given_rows.suffix_of(first)
        given = GivenRows.write(folders, itertools.chain([first], blocks), suffix)
        order = order.model_copy(update={"input": given.input})
    if order.output.name != "-":
        code = run(configuration, order, as_json=as_json, quiet=quiet)
        if given is not None and code in {OK, SOME_FAILED}:
            given.forget()
        return code
    if given is None:
        seen = real_path(order.input)
        found = [str(seen), *(map(str, order.more)), repr(stamp(seen))]
        given = GivenRows.write(folders, [orjson.dumps(found)], ".input")
    output = given.output(plan, order, f".{output_format.lstrip('.')}")
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        live = LiveOutput(out)
        code = run(
            configuration,
            order.model_copy(update={"output": output}),
            as_json=as_json,
            quiet=quiet,
            live=live,
        )
        if output.exists():
            if not live.has_written:
                given_rows.copy_out(output, out)
            given.forget(output)
    return code


def run(
    configuration: Configuration,
    order: JobRequest,
    *,
    as_json: bool,
    quiet: bool = False,
    live: LiveOutput | None = None,
    fixed: bool = False,
) -> int:
    """Run a job in the foreground, or go on with it.

    `live` gets the answers while it runs, and stderr all else. `fixed`: see `admission.admit`.

    Returns 0 when all rows are answered, 1 when not, 75 when it stopped and the same command may help later.
    """
    configuration, on_stderr = _decided(configuration), live is not None
    job = admission.admit(order, configuration.plan, JobFolders.from_environ(), fixed=fixed)
    try:
        about = status.read(job.folder)
        if job.finished:
            found = about | {"alive": False}
            if not as_json:
                print(f"promptmill: job {job.spec.job_id} is finished already.{_kept(job)}", file=sys.stderr)
            tell(found, job.folder, order, as_json=as_json, on_stderr=on_stderr)
            return SOME_FAILED if found.get("failed") else OK
        try:
            found, error, terminated = runtime.run(_job_run(configuration, job, live, as_json=as_json, quiet=quiet))
        except KeyboardInterrupt:
            tell(status.read(job.folder) | {"alive": False}, job.folder, order, as_json=as_json, on_stderr=on_stderr)
            raise
        how = "--model NAME"
        if error is not None and (meant := runtime.run(choosing.meant_model(configuration.plan, error, how))):
            found = found | {"reason": f"{error.message} {meant[0].upper()}{meant[1:]}"}
        if isinstance(error, OrderError):
            found = found | {"reason": error.worded(option_of)}
        told = about | found | {"alive": False}
        tell(told, job.folder, order, as_json=as_json, on_stderr=on_stderr, again=error is None or error.retryable)
    finally:
        job.close()
    if terminated:
        return TERMINATED
    if error is not None and error.code in {Code.INVALID_CONFIG, Code.INVALID_INPUT, Code.MISSING_DEPENDENCY}:
        return USAGE
    if error is not None and error.retryable:
        return TRY_AGAIN
    return OK if found["state"] == status.FINISHED and not found["failed"] else SOME_FAILED


def _decided(configuration: Configuration) -> Configuration:
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


def tell(
    found: Mapping[str, Any],
    folder: Folder | None = None,
    order: JobRequest | None = None,
    *,
    as_json: bool,
    on_stderr: bool = False,
    again: bool = True,
) -> None:
    stream = sys.stderr if on_stderr else sys.stdout
    found = {**found, **(order.urls if order is not None else {})}
    if as_json:
        say(orjson.dumps(found).decode(), stream)
        return
    examples = {} if folder is None else status.examples(folder)
    # what goes to a pipe was kept in a file of ours, which is gone in a moment
    say(summary(found, examples=examples, again=again, output=not on_stderr), stream, wrap=True)


async def _job_run(
    configuration: Configuration,
    job: Job,
    live: LiveOutput | None,
    *,
    as_json: bool,
    quiet: bool,
) -> tuple[dict[str, Any], PromptmillError | None, bool]:
    create = replicas.create if job.order.ray is None else job.order.ray.create
    service = Service(configuration, plan=job.plan, create=create)
    try:
        with _watching(job.spec.job_id, as_json=as_json, quiet=quiet) as watch:
            runner = Runner(job, service, watch=watch, live=live)
            return await until_ended(runner)
    finally:
        await service.aclose()


@contextlib.contextmanager
def _watching(job_id: str, *, as_json: bool, quiet: bool) -> Iterator[Watch | None]:
    """Give what shows a job's progress on stderr: a bar, lines, or events; None when `quiet`."""
    stream = sys.stderr
    if quiet:
        yield None
    elif as_json:
        yield progress_events(stream)
    elif stream.isatty():
        from promptmill.cli.progress_display import bars

        with bars(stream) as watch:
            yield watch
    else:
        yield progress_lines(job_id, stream)


def summary(
    found: Mapping[str, Any],
    *,
    examples: Mapping[str, str] = MappingProxyType({}),
    again: bool = True,
    output: bool = True,
) -> str:
    """Return the paragraph at the end of a job, from its status.

    `examples`: a message for each code of failures. `again`: the same command may help a job
    that stopped. `output`: name it.
    """
    state, reason = found["state"], found.get("reason")
    lines = [f"{found['job_id']}: {state}{f': {reason}' if reason else ''}"]
    if state == status.FINISHED and found.get("total") == 0:
        return f"{lines[0]}: {_without_rows(found)}"
    answered = found.get("done", 0) - found.get("failed", 0)
    if state == status.STOPPED and not found.get("alive") and reason and answered <= 0:
        return f"{lines[0]}\n{_GO_ON}" if again else lines[0]
    lines.append(f"  rows      {status.line(found)}")
    if found.get("errors"):
        lines.append(f"  errors    {', '.join(f'{count:,} {code}' for code, count in found['errors'].items())}")
    lines.extend(f"    {code}: {examples[code]}" for code in found.get("errors", ()) if code in examples)
    if found.get("failed") and state == status.FINISHED:
        lines.extend(_failed(found))
    lines.extend(_noteworthy(found))
    lines.append(f"  requests  {found.get('requests', 0):,}, {found.get('retries', 0):,} of them retries")
    if any(found.get(name) for name in ("prompt_tokens", "completion_tokens")):
        of_cache = f", {count:,} of them from the provider's cache" if (count := found.get("cached_tokens")) else ""
        lines.append(
            f"  tokens    {found.get('prompt_tokens', 0):,} in{of_cache}, {found.get('completion_tokens', 0):,} out"
        )
    if (cost := found.get("cost")) is not None:
        lines.append(f"  cost      {dollars(cost)}")
    if cached := found.get("cached"):
        lines.append(f"  cached    {counted(cached, 'row')}")
    latency = found.get("latency_s") or {}
    if latency.get("p50") is not None:
        shown = ", ".join(f"{name} {_two_digits(seconds)} s" for name, seconds in latency.items())
        lines.append(f"  latency   {shown}")
    lines.append(f"  time      {status.duration(found.get('seconds', 0))}")
    lines.extend(f"  note      {warning}" for warning in found.get("warnings", ()))
    if state == status.FINISHED and output:
        lines.append(f"  output    {found['output_file']}")
    elif state != status.FINISHED and not found.get("alive"):
        lines.append(_GO_ON if again else "  what is answered is kept")
    return "\n".join(lines)


def _without_rows(found: Mapping[str, Any]) -> str:
    if part := PART.search(found["output_file"]):
        return f"shard {int(part[1])} of {int(part[2])} holds no rows; that is all right"
    return f"{found['input_file']} holds no rows, and so does the output {found['output_file']}"


def _noteworthy(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines on rows that are not failed, and yet not answered as one expects."""
    if skipped := found.get("skipped"):
        yield f"  skipped   {counted(skipped, 'empty row')}, not in the output"
    if truncated := found.get("truncated"):
        yield f"  truncated {truncated} by max_tokens; --again truncated --keep --max-tokens N sends them again"
    if empty := found.get("empty"):
        yield f"  empty     {empty:,} answered without a word: look at `finish_reason`, and at the prompt or model"


def _failed(found: Mapping[str, Any]) -> list[str]:
    """Return remedies for failed rows: those with errors in the file need a correction, others can be sent again."""
    errors = found.get("errors", {})
    lines = []
    if not errors.keys() <= _OF_THE_FILE:
        lines.append("  --again failed sends the failed rows again")
    if errors.keys() & _OF_THE_FILE:
        name = Path(found["input_file"]).name
        lines.append(f"  correct these rows in {name} and run the same command: it sends them alone")
        if found["failed"] > 1:
            lines.append("  (--validate in its place lists them and sends nothing)")
    return lines


def _two_digits(seconds: float) -> str:
    return f"{float(f'{seconds:.2g}'):g}"  # latencies are counted in steps of 4 %
