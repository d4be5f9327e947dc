"""`promptmill serve`: its options and its start."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from promptmill.cli.options import add_shared, configuration_of
from promptmill.cli.parser import Parser
from promptmill.core.errors import config_error
from promptmill.core.feature import Face, client_command, features, part
from promptmill.system import logs

_LAST_PORT = 65_535


def add_options(serve: Parser) -> None:
    """Add the options of the command."""
    group = serve.add_argument_group("the client")
    group.add_argument(
        "--trust-client",
        action="store_true",
        help="the client is your own program: it may set trust_remote_code and send your keys to endpoints it names",
    )
    group.add_argument(
        "--locked",
        action="store_true",
        help="leave out generation_init and vllm_shutdown: clients cannot change the model or the configuration",
    )
    group.add_argument(
        "--tools",
        metavar="NAMES",
        default="",
        help="offer only these tools, such as generate,bulk_generate,bulk_status; saves a model's context",
    )
    group = serve.add_argument_group("logs and metrics")
    group.add_argument(
        "--access-log",
        action="store_true",
        help="log each call, and over HTTP each request, on stderr; default: only calls that failed",
    )
    group.add_argument(
        "--log-level",
        choices=logs.LEVELS,
        help="log messages from this level on; default: PROMPTMILL_LOG_LEVEL, or warning; debug logs each retry",
    )
    group.add_argument(
        "--log-format",
        choices=logs.FORMATS,
        default="text",
        help="json writes each entry of the log as a line of JSON, for programs that collect logs",
    )
    group.add_argument(
        "--metrics",
        metavar="PORT",
        type=int,
        help="over stdio: serve metrics for Prometheus at http://127.0.0.1:PORT/metrics; --http has them at /metrics",
    )
    _add_http_options(serve)
    add_shared(serve)
    serve.show_examples(
        f"promptmill serve                                   # over stdio{_adds('; `{}` adds it to a client')}",
        "promptmill serve --http 127.0.0.1:8017 --access-log",
        "promptmill serve --http 0.0.0.0:8017 --token-file token.txt --tls-cert cert.pem --tls-key key.pem",
    )
    serve.set_defaults(unconfigured=_serve)


def _add_http_options(serve: argparse.ArgumentParser) -> None:
    http = serve.add_argument_group("over HTTP", "as with --locked; a token is needed to listen beyond this machine")
    more = "".join(f", and {face.words}" for face in _faces())
    http.add_argument("--http", metavar="HOST:PORT", help=f"serve there instead of stdio: MCP at /mcp{more}")
    for face in _faces():
        http.add_argument(f"--no-{face.name}", action="store_true", help=f"leave out {face.words}")
    token = http.add_mutually_exclusive_group()
    token.add_argument(
        "--token-env",
        metavar="NAME",
        help="the environment variable with the bearer token clients send; default: PROMPTMILL_HTTP_TOKEN, if set",
    )
    token.add_argument("--token-file", type=Path, metavar="PATH", help="the file that holds the token")
    http.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME", help="a further host name that clients may use"
    )
    http.add_argument(
        "--allowed-origin",
        action="append",
        default=[],
        metavar="URL",
        help="a web page that may call /v1 from a browser with the token, such as http://localhost:3000",
    )
    http.add_argument("--max-body", metavar="SIZE", help="largest request, 64KiB to 2GiB; default: 32MiB")
    http.add_argument("--tls-cert", type=Path, metavar="PATH", help="certificate chain (PEM); serve https")
    http.add_argument("--tls-key", type=Path, metavar="PATH", help="its key, if not in the same file")
    callers = serve.add_argument_group("other callers, over HTTP")
    for module in _authentications():
        module.add_options(callers)
    serve.set_defaults(http_options=[action.dest for action in (*http._group_actions, *callers._group_actions)])


def _authentications() -> list[Any]:
    return [part(feature.authentication) for feature in features().values() if feature.authentication]


def _faces() -> list[Face]:
    return [face for feature in features().values() for face in feature.faces]


def _serve(arguments: argparse.Namespace) -> int:
    from promptmill.system import runtime

    runtime.start_quickly()
    if arguments.log_level is None:
        logs.check_level(os.environ)
    return _serve_stdio(arguments) if arguments.http is None else _serve_http(arguments)


def _adds(words: str) -> str:
    command = client_command()
    return words.format(command) if command else ""


def _serve_stdio(arguments: argparse.Namespace) -> int:
    _refuse_http_options(arguments)
    if arguments.metrics is not None and not 0 <= arguments.metrics <= _LAST_PORT:
        raise config_error("--metrics", f"{arguments.metrics} is not a port; write a number from 0 to {_LAST_PORT}.")
    if sys.stdin.isatty():
        print(f"promptmill: waiting for an MCP client on stdin{_adds('; `{}` adds it to one')}.", file=sys.stderr)
    configuration = configuration_of(arguments)
    from promptmill.server import process

    _log(arguments)
    return process.serve_stdio(
        configuration, locked=arguments.locked, tools=_tools(arguments), metrics_port=arguments.metrics
    )


def _serve_http(arguments: argparse.Namespace) -> int:
    configuration = configuration_of(arguments)
    from promptmill.server import process

    _log(arguments)
    if arguments.metrics is not None:
        raise config_error("--metrics", " works only over stdio; with --http, the metrics are at /metrics.")
    if arguments.trust_client:
        raise config_error("--trust-client", " works only over stdio; over HTTP, no client changes the configuration.")
    from promptmill.http.listen_options import opened

    with opened(
        arguments.http,
        token_file=arguments.token_file,
        token_env=arguments.token_env,
        further_tokens=configuration.config.operator.client_limits.tokens,
        authentication=next(filter(None, (each.authentication_of(arguments) for each in _authentications())), None),
        allowed_hosts=arguments.allowed_host,
        allowed_origins=arguments.allowed_origin,
        max_body=arguments.max_body,
        tls_cert=arguments.tls_cert,
        tls_key=arguments.tls_key,
        access_log=arguments.access_log,
        environ=os.environ,
    ) as bound:
        wanted = [face for face in _faces() if not getattr(arguments, f"no_{face.name}")]
        named = replace(bound, greeting="; ".join([bound.greeting, *(face.words for face in wanted)]))
        return process.serve_http(configuration, named, [part(face.app) for face in wanted], _tools(arguments))


def _tools(arguments: argparse.Namespace) -> list[str]:
    return [name.strip() for name in arguments.tools.split(",") if name.strip()]


def _log(arguments: argparse.Namespace) -> None:
    as_json = arguments.log_format == "json"
    logs.to_stderr(arguments.log_level, all_calls=arguments.access_log, as_json=as_json)


def _refuse_http_options(arguments: argparse.Namespace) -> None:
    for name in arguments.http_options:
        if getattr(arguments, name):
            raise config_error(f"--{name.replace('_', '-')}", " needs --http HOST:PORT.")
