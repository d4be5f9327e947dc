"""The commands about files, `promptmill bulk`, `join` and `jobs`: their options, and which work they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptmill.cli.configured import configuration_of
from promptmill.cli.options import SCHEMA, Parser, amount, at_least_one, is_url, text_of
from promptmill.core.errors import config_error

if TYPE_CHECKING:  # imported where it is needed: `serve` has its first answers ready before that
    from promptmill.config.loading import Configuration
    from promptmill.jobs.job_request import Replication


def add(commands: Any, shared: Parser) -> None:
    """Add the commands."""
    _add_bulk(commands, shared)
    _add_join(commands)
    _add_jobs(commands, shared)


def _add_bulk(commands: Any, shared: Parser) -> None:
    bulk = commands.add_parser(
        "bulk", parents=[shared], help="answer a file of prompts into another; goes on after a crash"
    )
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
    bulk.add_argument("--id-column", metavar="NAME", help="the field or column that tells rows apart, once each")
    bulk.add_argument("--system", default="", metavar="TEXT", help="system prompt above every row")
    bulk.add_argument("--schema", type=Path, metavar="FILE", help=SCHEMA)
    bulk.add_argument("--limit", type=at_least_one, metavar="N", help="only the first N rows")
    bulk.add_argument("--shard", metavar="I/N", help="only this part of the rows, for `promptmill join OUTPUT`")
    bulk.add_argument("--ray", metavar="ADDRESS", help="answer on a Ray cluster: HOST:PORT, or auto")
    bulk.add_argument("--replicas", type=at_least_one, default=1, metavar="N", help="with --ray: so many of the model")
    bulk.add_argument("--num-gpus", type=float, default=0, metavar="N", help="with --ray: GPUs of each replica")
    bulk.add_argument("--num-cpus", type=float, default=1, metavar="N", help="with --ray: cores of each replica")
    bulk.add_argument("--max-cost", type=amount, metavar="AMOUNT", help="most that all runs of the job may spend")
    bulk.add_argument("--max-failures", metavar="N|P%", help="stop when more rows than this have failed")
    bulk.add_argument("--dedupe", action="store_true", help="send identical rows at temperature 0 once")
    bulk.add_argument("--retry-failed", action="store_true", help="do the failed rows of a finished job again")
    bulk.add_argument("--retry-truncated", action="store_true", help="do rows again that max_tokens cut short")
    bulk.add_argument(
        "--reuse",
        nargs="?",
        const="",
        metavar="JOB",
        help="take INPUT as it is now and ask only what is new in it; JOB: use the answers of another job or output",
    )
    bulk.add_argument("--accept-change", action="store_true", help="go on under other settings, noted in later rows")
    bulk.add_argument("--replace", action="store_true", help="replace OUTPUT, whatever it is, and go on with the job")
    bulk.add_argument("--overwrite", action="store_true", help="forget all answers and replace OUTPUT, whatever it is")
    bulk.add_argument("--state", type=Path, metavar="DIR", help="keep the job in DIR instead of beside OUTPUT")
    bulk.add_argument("--quiet", action="store_true", help="show no progress")
    bulk.add_argument("--detach", action="store_true", help="run in the background; see `promptmill jobs`")
    bulk.add_argument("--validate", action="store_true", help="check every row and estimate tokens; send nothing")
    bulk.add_argument("--json", action="store_true", help="print the result as JSON")
    bulk.set_defaults(command=_bulk)


def _add_join(commands: Any) -> None:
    join = commands.add_parser("join", help="make one output of the parts that `bulk --shard I/N` made")
    join.add_argument("output", type=Path, metavar="OUTPUT", help="as it was named for the shards")
    join.add_argument("--overwrite", action="store_true", help="replace OUTPUT, if it is there")
    join.add_argument("--state", type=Path, metavar="DIR", help="where jobs are kept, as for bulk")
    join.add_argument("--json", action="store_true", help="print the result as JSON")
    join.set_defaults(unconfigured=_join)


def _add_jobs(commands: Any, shared: Parser) -> None:
    jobs = commands.add_parser("jobs", parents=[shared], help="how far jobs are; go on with one, forget old ones")
    jobs.add_argument("job_id", nargs="?", metavar="JOB_ID", help="one job; all without it")
    doing = jobs.add_mutually_exclusive_group()
    doing.add_argument("--cancel", action="store_true", help="end the job; what is answered is kept")
    doing.add_argument("--resume", action="store_true", help="go on with the job, here")
    doing.add_argument("--export", type=Path, metavar="FILE", help="write the answers there are to FILE")
    doing.add_argument("--follow", action="store_true", help="show how far a job is until it ends")
    doing.add_argument(
        "--failed", action="store_true", help="only jobs that failed or have failed rows; with JOB_ID its failed rows"
    )
    doing.add_argument("--prune", metavar="AGE", help="forget finished jobs older than AGE (30m, 12h, 7d, 2w)")
    jobs.add_argument("--all", action="store_true", help="with --export: failed and unanswered rows as well")
    jobs.add_argument("--state", type=Path, metavar="DIR", help="where jobs are kept, as for bulk")
    jobs.add_argument("--unfinished", action="store_true", help="with --prune: also jobs that could still go on")
    jobs.add_argument("--json", action="store_true", help="print the result as JSON")
    jobs.set_defaults(unconfigured=_jobs)


def _bulk(arguments: argparse.Namespace, configuration: Configuration) -> int:
    def run(arguments: argparse.Namespace) -> int:
        return _bulk_of_files(arguments, configuration)

    if any(map(is_url, [*arguments.input, arguments.output])):
        from promptmill.cli import remote

        return remote.bulk(arguments, run)
    return run(arguments)


def _bulk_of_files(arguments: argparse.Namespace, configuration: Configuration) -> int:
    from promptmill.cli import bulk as command
    from promptmill.jobs.job_folders import JobFolders
    from promptmill.jobs.job_request import JobRequest
    from promptmill.service import registry

    other = JobFolders.from_environ().at(arguments.reuse).database if arguments.reuse else None

    if not arguments.validate:
        registry.check_key(configuration.plan)
    # a shell leaves a quoted ~ alone
    inputs, output = [Path(name).expanduser() for name in arguments.input], Path(arguments.output).expanduser()
    order = JobRequest(
        input=inputs[0].absolute(),
        more=[path.absolute() for path in inputs[1:]],
        output=output,
        prompt_template=_template(arguments),
        prompt_column=arguments.prompt_column,
        id_column=arguments.id_column,
        system_prompt=arguments.system,
        limit=arguments.limit,
        max_failures=arguments.max_failures,
        max_cost=arguments.max_cost,
        dedupe=arguments.dedupe,
        overwrite=arguments.overwrite,
        replace=arguments.replace,
        retry_failed=arguments.retry_failed,
        retry_truncated=arguments.retry_truncated,
        reuse=arguments.reuse == "",
        reuse_from=other,
        accept_change=arguments.accept_change,
        shard=arguments.shard,
        ray=_replication(arguments),
    )
    if Path("-") in {output, *inputs}:
        if arguments.detach or arguments.validate or arguments.shard or (Path("-") in inputs and inputs[1:]):
            raise config_error("-", "goes without --detach, --validate, --shard and further inputs.")
        return command.piped(
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
        return command.detach(configuration, order, as_json=arguments.json)
    return command.bulk(configuration, order, as_json=arguments.json, quiet=arguments.quiet)


def _replication(arguments: argparse.Namespace) -> Replication | None:
    """Return what `--ray` and the options beside it say, None without it. Raises `PromptmillError`."""
    from promptmill.jobs.job_request import Replication

    if arguments.ray is not None:
        return Replication(
            address=arguments.ray, replicas=arguments.replicas, gpus=arguments.num_gpus, cpus=arguments.num_cpus
        )
    if (arguments.replicas, arguments.num_gpus, arguments.num_cpus) != (1, 0, 1):
        raise config_error("--replicas", "and --num-gpus, --num-cpus go with --ray ADDRESS alone.")
    return None


def _template(arguments: argparse.Namespace) -> str | None:
    """Return what `--prompt` or `--prompt-file` says. Raises `PromptmillError`."""
    file: Path | None = arguments.prompt_file
    if file is None:
        return str(arguments.prompt) if arguments.prompt is not None else None
    return text_of("--prompt-file", file).removesuffix("\n")


def _join(arguments: argparse.Namespace) -> int:
    from promptmill.cli import bulk as command

    return command.join(arguments.output, overwrite=arguments.overwrite, as_json=arguments.json)


def _jobs(arguments: argparse.Namespace) -> int:
    """Run `jobs`, where only going on with one needs the configuration."""
    from promptmill.cli import bulk as command

    if arguments.prune is not None:
        return command.forget(arguments.prune, unfinished=arguments.unfinished, as_json=arguments.json)
    if arguments.resume:
        return command.resume(configuration_of(arguments), arguments.job_id, as_json=arguments.json)
    if arguments.export is not None:
        return command.export(arguments.job_id, arguments.export, everything=arguments.all, as_json=arguments.json)
    if arguments.follow:
        return command.follow(arguments.job_id, as_json=arguments.json)
    return command.jobs(arguments.job_id, cancel=arguments.cancel, only_failed=arguments.failed, as_json=arguments.json)
