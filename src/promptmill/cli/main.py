"""The command line `promptmill …`."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptmill import __version__
from promptmill.cli.options import Parser, amount, at_least_one, is_url, overrides, shared_options
from promptmill.cli.terminal import LostOutputError, columns, flush, say
from promptmill.config import environment
from promptmill.core.errors import PromptmillError, config_error

if TYPE_CHECKING:  # imported where it is needed: `serve` has its first answers ready before that
    from promptmill.config.loading import Configuration
    from promptmill.jobs.job_request import Replication

OK, SOME_FAILED, USAGE = 0, 1, 2
_NAME, _URL = 12, 58  # columns of the list of providers, where nothing is cut
_SCHEMA = "a JSON Schema that every answer must satisfy"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 all answered, 1 some failed, 2 usage or configuration."""
    _speak_utf8()
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["--list-models"]:
        given[0] = "models"
    parser = _parser(serving=given[:1] == ["serve"])
    arguments = parser.parse_args(given)
    if "unconfigured" not in arguments and "command" not in arguments:
        return _help(parser, [])
    if getattr(arguments, "state", None) is not None:
        os.environ["PROMPTMILL_STATE"] = str(arguments.state)
    for note in environment.misspelled(os.environ):
        say(f"promptmill: {note}", sys.stderr)
    try:
        code = arguments.unconfigured(arguments) if "unconfigured" in arguments else _configured(arguments)
        flush(sys.stdout)
        return code
    except PromptmillError as error:
        say(f"promptmill: {error}", sys.stderr, wrap=True)
        return USAGE
    except (BrokenPipeError, LostOutputError) as error:  # who reads it has enough, as `head`; or the disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, LostOutputError):
            say(f"promptmill: {error}", sys.stderr, wrap=True)
        return SOME_FAILED
    except KeyboardInterrupt:
        return 130


def _speak_utf8() -> None:
    """Make pipes and files UTF-8 on Windows too, and let no character that an output cannot show end the program."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            if sys.platform == "win32" and not stream.isatty():
                stream.reconfigure(encoding="utf-8")
            if stream is not sys.stdin:
                stream.reconfigure(errors="backslashreplace")


def _configured(arguments: argparse.Namespace) -> int:
    """Run a command that needs the configuration."""
    command: Callable[[argparse.Namespace, Configuration], int] = arguments.command
    configuration = _configuration(arguments)
    try:
        return command(arguments, configuration)
    except PromptmillError as error:
        from promptmill.cli.other_ways import explained
        from promptmill.cli.places import placed

        error = placed(error, arguments, configuration)
        raise explained(error, configuration, asked_for=arguments.backend) from None


def _configuration(arguments: argparse.Namespace) -> Configuration:
    from promptmill.config.loading import HTTP_DEFAULTS, Configuration

    if arguments.backend is not None:
        from promptmill.service import registry

        registry.check_asked(arguments.backend)
    return Configuration.load(
        arguments.config,
        assignments=arguments.set,
        backend=arguments.backend,
        values=lambda raw: overrides(arguments, raw) | _schema(arguments),
        trust_client=getattr(arguments, "trust_client", False),
        defaults=HTTP_DEFAULTS if getattr(arguments, "http", None) else {},
    )


def _schema(arguments: argparse.Namespace) -> dict[tuple[str, ...], Any]:
    """Return the settings for answers that keep to `--schema FILE`. Raises `PromptmillError`."""
    file: Path | None = getattr(arguments, "schema", None)
    if file is None:
        return {}
    import json

    from promptmill.answers.response_format import asking_for
    from promptmill.answers.schema import compile_schema, why_no_schema, why_not_json
    from promptmill.core.conversation import shape

    if str(file).startswith("{") and not os.path.isfile(file):  # noqa: PTH113 (too long a name is no error)
        raise config_error("--schema", "takes a file; write the schema into one: --schema schema.json")
    try:
        schema = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        wrong = "it is not UTF-8 text"
        if isinstance(error, json.JSONDecodeError):
            wrong = f"it is not JSON: {why_not_json(error)}"
        reason = f"{error.strerror}; check the path" if isinstance(error, OSError) else wrong
        raise config_error("--schema", f"{file} cannot be read: {reason}.") from None
    if not isinstance(schema, dict):
        raise config_error("--schema", f"{file} holds {shape(schema)}; write a JSON Schema object into it.")
    if wrong := why_no_schema(schema):
        raise config_error("--schema", f"{file} {wrong}")
    compile_schema(schema, str(file))
    return {("sampling_params", "response_format"): asking_for(schema)}


def _serve(arguments: argparse.Namespace) -> int:
    if arguments.log_level is None:
        environment.check_log_level(os.environ)
    return _serve_stdio(arguments) if arguments.http is None else _serve_http(arguments)


def _serve_stdio(arguments: argparse.Namespace) -> int:
    _refuse_http_options(arguments)
    if sys.stdin.isatty():
        print("promptmill: waiting for an MCP client on stdin; `promptmill install` adds it to one.", file=sys.stderr)
    from promptmill.stdio.front import Front

    front = Front.open(locked=arguments.locked)  # before the imports
    configuration = _configuration(arguments)
    front.configured()
    from promptmill.server import process
    from promptmill.system import logs

    logs.to_stderr(arguments.log_level, all_calls=arguments.access_log)
    return process.serve_stdio(configuration, front, locked=arguments.locked)


def _serve_http(arguments: argparse.Namespace) -> int:
    configuration = _configuration(arguments)
    from promptmill.server import process
    from promptmill.system import logs

    logs.to_stderr(arguments.log_level, all_calls=arguments.access_log)
    if arguments.trust_client:
        raise config_error(
            "--trust-client", "goes with stdio alone: over HTTP clients cannot change the configuration."
        )
    from promptmill.http.options import HttpOptions

    offer = HttpOptions.read(
        arguments.http,
        token_file=arguments.token_file,
        token_env=arguments.token_env,
        allowed_hosts=arguments.allowed_host,
        max_body=arguments.max_body,
        tls_cert=arguments.tls_cert,
        tls_key=arguments.tls_key,
        access_log=arguments.access_log,
        environ=os.environ,
    )
    return process.serve_http(configuration, offer)


def _refuse_http_options(arguments: argparse.Namespace) -> None:
    for name in ("token_file", "token_env", "allowed_host", "max_body", "tls_cert", "tls_key"):
        if getattr(arguments, name):
            raise config_error(f"--{name.replace('_', '-')}", "goes with --http HOST:PORT alone.")


def _generate(arguments: argparse.Namespace, configuration: Configuration) -> int:
    from promptmill.cli import generate as shell

    if not arguments.json:
        shell.refuse_unquoted(arguments.prompt)
    shell.refuse_mistaken(arguments.prompt, images=bool(arguments.image))
    prompts = shell.read_prompts(arguments.prompt, lines=arguments.lines)
    return shell.generate(
        configuration,
        [shell.prompt_with_images(prompt, arguments.image) for prompt in prompts],
        system_prompt=arguments.system,
        as_json=arguments.json,
        output=arguments.output,
    )


def _check(arguments: argparse.Namespace, configuration: Configuration) -> int:
    from promptmill.cli import check

    return check.check(configuration, arguments)


def _init(arguments: argparse.Namespace) -> int:
    """Run `init`, whose check reads the file that it wrote."""
    from promptmill.cli import init

    def check(file: Path) -> int:
        configured = argparse.Namespace(**{**vars(shared), "config": file})
        return _check(configured, _configuration(configured))

    shared = argparse.Namespace(config=None, backend=None, set=arguments.set, json=False)
    return init.run(arguments, check)


def _cache(arguments: argparse.Namespace, configuration: Configuration) -> int:
    from promptmill.cli import cache

    return cache.show(configuration, clear=arguments.clear, as_json=arguments.json)


def _models(arguments: argparse.Namespace, configuration: Configuration) -> int:
    from promptmill.cli import models

    return models.show(configuration, as_json=arguments.json)


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
    try:
        return file.read_text(encoding="utf-8-sig").removesuffix("\n")
    except (OSError, ValueError) as error:
        reason = f"{error.strerror}; check the path" if isinstance(error, OSError) else "it is not UTF-8 text"
        raise config_error("--prompt-file", f"{file} cannot be read: {reason}.") from None


def _jobs(arguments: argparse.Namespace) -> int:
    """Run `jobs`, where only going on with one needs the configuration."""
    from promptmill.cli import bulk as command

    if arguments.prune is not None:
        return command.forget(arguments.prune, unfinished=arguments.unfinished, as_json=arguments.json)
    if arguments.resume:
        return command.resume(_configuration(arguments), arguments.job_id, as_json=arguments.json)
    if arguments.export is not None:
        return command.export(arguments.job_id, arguments.export, everything=arguments.all, as_json=arguments.json)
    if arguments.follow:
        return command.follow(arguments.job_id, as_json=arguments.json)
    return command.jobs(arguments.job_id, cancel=arguments.cancel, only_failed=arguments.failed, as_json=arguments.json)


def _join(arguments: argparse.Namespace) -> int:
    from promptmill.cli import bulk as command

    return command.join(arguments.output, overwrite=arguments.overwrite, as_json=arguments.json)


def _providers(arguments: argparse.Namespace) -> int:
    """List the providers that `provider: NAME` knows."""
    from promptmill.service import registry

    rows = registry.providers()
    if arguments.json:
        names = ("provider", "base_url", "key_env", "key_is_set")
        say(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2))
        return OK
    keys = [f"{key_env} ({'set' if is_set else 'not set'})" if key_env else "no key" for *_, key_env, is_set in rows]
    room = columns(sys.stdout) - _NAME - max(map(len, keys)) - 2 if sys.stdout.isatty() else _URL
    for (name, base_url, *_), key in zip(rows, keys, strict=True):
        url = base_url or "needs base_url"
        say(f"{name:{_NAME}} {url if len(url) <= room else f'{url[: room - 1]}…':{room}} {key}")
    return OK


def _help(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    """Print the help of the whole command line, or of the command that `words` name."""
    if words:
        parser.parse_args([*words, "--help"])
    parser.print_help()
    return OK


def _parser(*, serving: bool = False) -> argparse.ArgumentParser:
    """Return the parser of the command line; one that is `serving` does without what only other commands import."""
    parser = Parser("promptmill", description="Text-generation engines as MCP tools.")
    parser.add_argument("-v", "-V", "--version", action="version", version=f"promptmill {__version__}")
    shared = shared_options()
    commands = parser.add_subparsers(metavar="COMMAND")

    _add_serve(commands, shared)
    _add_generate(commands, shared)
    _add_bulk(commands, shared)
    _add_jobs(commands, shared)
    _add_cache(commands, shared)
    _add_models(commands)
    _add_check(commands, shared)
    _add_init(commands, shared)
    if not serving:
        _add_completion(commands, parser)
    helping = commands.add_parser("help", help="what a command does and takes")
    helping.add_argument("words", nargs="*", metavar="COMMAND")
    helping.set_defaults(unconfigured=lambda arguments: _help(parser, arguments.words))

    if not serving:
        from promptmill.install import command as install

        install.add(commands)
    return parser


def _add_serve(commands: Any, shared: Parser) -> None:
    serve = commands.add_parser("serve", parents=[shared], help="serve MCP over stdio, or over HTTP with --http")
    serve.add_argument(
        "--trust-client",
        action="store_true",
        help="the client is your own program: it may set trust_remote_code and send your keys to endpoints it names",
    )
    serve.add_argument(
        "--locked",
        action="store_true",
        help="leave out generation_init and vllm_shutdown: your configuration counts, whatever a client wants",
    )
    serve.add_argument(
        "--access-log",
        action="store_true",
        help="a line on stderr for each call, and over HTTP for each request; without it only for calls that failed",
    )
    serve.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error"],
        help="what is logged on stderr (else PROMPTMILL_LOG_LEVEL, else warning); debug tells each retry",
    )
    _add_http_options(serve)
    serve.set_defaults(unconfigured=_serve)


def _add_generate(commands: Any, shared: Parser) -> None:
    generate = commands.add_parser("generate", parents=[shared], help="answer prompts and print the answers")
    generate.add_argument("prompt", nargs="*", help="a prompt; several are answered together; none, or -: stdin")
    generate.add_argument("-s", "--system", default="", metavar="TEXT", help="system prompt")
    generate.add_argument("--lines", action="store_true", help="every line of stdin is a prompt")
    generate.add_argument(
        "--image", action="append", default=[], metavar="PATH", help="a path or URL of an image; may be repeated"
    )
    generate.add_argument("-o", "--output", type=Path, metavar="FILE", help="write to FILE instead of stdout")
    generate.add_argument("--schema", type=Path, metavar="FILE", help=_SCHEMA)
    generate.add_argument("--json", action="store_true", help="print the result as JSON")
    generate.set_defaults(command=_generate)


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
    bulk.add_argument("--schema", type=Path, metavar="FILE", help=_SCHEMA)
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
    doing.add_argument("--prune", metavar="AGE", help="forget finished jobs older than AGE (12h, 7d, 2w)")
    jobs.add_argument("--all", action="store_true", help="with --export: failed and unanswered rows as well")
    jobs.add_argument("--state", type=Path, metavar="DIR", help="where jobs are kept, as for bulk")
    jobs.add_argument("--unfinished", action="store_true", help="with --prune: also jobs that could still go on")
    jobs.add_argument("--json", action="store_true", help="print the result as JSON")
    jobs.set_defaults(unconfigured=_jobs)


def _add_cache(commands: Any, shared: Parser) -> None:
    cache = commands.add_parser("cache", parents=[shared], help="what the cache of answers holds")
    cache.add_argument("--clear", action="store_true", help="forget all of it")
    cache.add_argument("--json", action="store_true", help="print the result as JSON")
    cache.set_defaults(command=_cache)


def _add_models(commands: Any) -> None:
    models = commands.add_parser(
        "models", parents=[shared_options(answering=False)], help="list the models that --model NAME knows"
    )
    models.add_argument("--json", action="store_true", help="as JSON")
    models.set_defaults(command=_models)


def _add_init(commands: Any, shared: Parser) -> None:
    init = commands.add_parser("init", parents=[shared], help="ask three questions, write parameter.yaml, check it")
    init.add_argument("-o", "--output", type=Path, metavar="FILE", help="the file to write; default: parameter.yaml")
    init.add_argument("--force", action="store_true", help="replace the file if there is one")
    init.set_defaults(unconfigured=_init)


def _add_completion(commands: Any, parser: Parser) -> None:
    from promptmill.cli.completion import SHELLS

    completion = commands.add_parser(
        "completion",
        help="print a script that completes commands, options, files, jobs and models with Tab",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["to have it in every shell:", *(f"  {shell:{_NAME}}{how}" for shell, how in SHELLS.items())]),
    )
    completion.add_argument("shell", choices=list(SHELLS))
    completion.set_defaults(unconfigured=lambda arguments: _completion(parser, arguments.shell))


def _completion(parser: Parser, shell: str) -> int:
    from promptmill.cli.completion import script

    say(script(parser, shell))
    return OK


def _add_check(commands: Any, shared: Parser) -> None:
    providers = commands.add_parser("providers", help="list the providers that `provider: NAME` knows, and their keys")
    providers.add_argument("--json", action="store_true", help="as JSON")
    providers.set_defaults(unconfigured=_providers)

    check = commands.add_parser("check", parents=[shared], help="try configuration, endpoint, key and model")
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    check.set_defaults(command=_check)


def _add_http_options(serve: argparse.ArgumentParser) -> None:
    http = serve.add_argument_group("over HTTP", "always locked; beyond loopback only with a token")
    http.add_argument("--http", metavar="HOST:PORT", help="serve streamable HTTP at /mcp there instead of stdio")
    token = http.add_mutually_exclusive_group()
    token.add_argument(
        "--token-env",
        metavar="NAME",
        help="the environment variable with the bearer token clients send; default: PROMPTMILL_HTTP_TOKEN, if set",
    )
    token.add_argument("--token-file", type=Path, metavar="PATH", help="the file that holds the token")
    http.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME", help="a further name clients may call it by"
    )
    http.add_argument("--max-body", metavar="SIZE", help="largest request, 64KiB to 2GiB; default: 64MiB")
    http.add_argument("--tls-cert", type=Path, metavar="PATH", help="certificate chain (PEM); serve https")
    http.add_argument("--tls-key", type=Path, metavar="PATH", help="its key, if not in the same file")


if __name__ == "__main__":
    sys.exit(main())
