"""What people write who know other programs, and how it is said here.

The programs: `openai`, `llm`, `aichat`, `ollama`, `vllm serve` and `vllm run-batch`, and DataTrove's runners.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

_KEY = "a key does not go on a command line, which others can read: `export OPENAI_API_KEY=…`, or --key-env NAME"
_URL = "--base-url URL names the endpoint"
_AT_ONCE = "--concurrency N is the most requests in flight"
_PROMPT = "write the prompt itself: promptmill generate 'PROMPT'"
_FILES = "INPUT and OUTPUT go without option names: promptmill bulk INPUT OUTPUT"
_ON = "the same command again goes on where it ended"
_ROWS = "--limit N takes the first N rows"
_COLUMN = "--prompt-column NAME is the field or column to ask"
_LISTEN = "--http 127.0.0.1:{value} serves HTTP there"
_LOGS = "--log-level debug says more"
_SYSTEM = "--system TEXT is the system prompt"
_OPENAI = "`--set backend_configs.openai."

# By command, `""` for all of them; `{value}` is a number that stands behind the option.
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "": {
        **dict.fromkeys(("--api-key", "--openai-api-key", "--key", "--token", "-k"), _KEY),
        **dict.fromkeys(
            ("--api-base", "--openai-api-base", "--endpoint", "--url", "--api-url", "--host", "--server"), _URL
        ),
        **dict.fromkeys(
            (
                *("--workers", "--num-workers", "--max-workers", "--threads", "--parallel", "--jobs", "-j"),
                *("--max-concurrency", "--max-concurrent", "--max-num-seqs", "--batch-size", "--tasks"),
            ),
            _AT_ONCE,
        ),
        **dict.fromkeys(
            ("--stream", "--streaming", "--no-stream"),
            "a single answer on a terminal is shown while it comes; all others are printed whole",
        ),
        **dict.fromkeys(("--retries", "--max-retries"), f"{_OPENAI}retries=N` sets it"),
        **dict.fromkeys(("--timeout", "--request-timeout"), f"{_OPENAI}timeout=SECONDS` sets it"),
        "--rpm": f"{_OPENAI}rpm=N` sets it",
        "--tpm": f"{_OPENAI}tpm=N` sets it",
        "--tensor-parallel-size": "`--set backend_configs.vllm.gpu_ids=0,1` names the GPUs",
        **dict.fromkeys(("--verbose", "--debug"), "`promptmill check` tries each stage and tells it"),
        **dict.fromkeys(("--system-prompt", "--sys", "--instructions"), _SYSTEM),
        "--engine": "--backend NAME chooses the engine",
        "--format": "--json prints the result as JSON",
    },
    "generate": {
        **dict.fromkeys(("--prompt", "-p", "--message", "--query", "--text", "--user", "--input"), _PROMPT),
        **dict.fromkeys(
            ("--file", "-f", "--prompt-file", "--input-file"), "a file is piped in: promptmill generate < FILE"
        ),
        **dict.fromkeys(("--attachment", "-a", "--images"), "--image PATH, once for each"),
        **dict.fromkeys(("--continue", "--session", "--chat"), "each prompt stands alone here, without history"),
        "-c": f"each prompt stands alone here, without history; {_AT_ONCE}",
    },
    "bulk": {
        **dict.fromkeys(("--input", "-i", "--input-file", "--output", "-o", "--output-file", "--out"), _FILES),
        **dict.fromkeys(("--resume", "--continue", "--restart"), _ON),
        **dict.fromkeys(("--num-samples", "--max-samples", "--max-rows", "--head", "--num-rows"), _ROWS),
        **dict.fromkeys(("--column", "--text-column", "--text-key", "--prompt-key", "--field"), _COLUMN),
        "--force": "--replace or --overwrite; `promptmill bulk --help` says what each keeps",
        "--dry-run": "--validate checks every row and sends nothing",
        **dict.fromkeys(("--background", "--async", "--daemon"), "--detach runs it in the background"),
    },
    "jobs": {
        **dict.fromkeys(("--list", "-l"), "`promptmill jobs` lists them"),
        **dict.fromkeys(("--delete", "--remove", "--rm"), "--prune AGE forgets finished ones"),
        **dict.fromkeys(("--watch", "--tail", "-f"), "--follow shows how far a job is"),
        **dict.fromkeys(("--status", "--show", "--id"), "write the job itself: promptmill jobs JOB_ID"),
        **dict.fromkeys(("--stop", "--kill"), "--cancel ends a job"),
    },
    "serve": {
        **dict.fromkeys(("--port", "-p"), _LISTEN),
        **dict.fromkeys(("--host", "--bind", "--address"), "--http HOST:PORT serves HTTP there"),
        "--transport": "--http HOST:PORT serves HTTP; without it, stdio",
        **dict.fromkeys(("--verbose", "--debug", "-d"), _LOGS),
        **dict.fromkeys(("--ssl-certfile", "--cert"), "--tls-cert PATH"),
        **dict.fromkeys(("--ssl-keyfile",), "--tls-key PATH"),
        **dict.fromkeys(("--api-key", "--token"), "clients' token goes into PROMPTMILL_HTTP_TOKEN; " + _KEY),
    },
}
# Commands of other programs, or of our own that are options elsewhere.
_COMMANDS: Mapping[str, str] = {
    **dict.fromkeys(
        ("chat", "run", "ask", "prompt", "complete", "completions", "query"), "promptmill generate 'PROMPT'"
    ),
    **dict.fromkeys(("batch", "run-batch", "process", "map"), "promptmill bulk INPUT OUTPUT"),
    **dict.fromkeys(("start", "server", "mcp"), "promptmill serve"),
    **dict.fromkeys(("status", "list", "ls", "ps", "job"), "promptmill jobs"),
    **dict.fromkeys(("resume", "continue"), "promptmill jobs JOB_ID --resume"),
    **dict.fromkeys(("config", "configure", "setup"), "promptmill init"),
    **dict.fromkeys(("test", "doctor", "verify", "ping"), "promptmill check"),
    **dict.fromkeys(("keys", "login", "auth"), "export OPENAI_API_KEY=…"),
    "version": "promptmill --version",
}
# Words behind `jobs`, which does what options say.
_VERBS: Mapping[str, str] = {
    "resume": "{job} --resume",
    "continue": "{job} --resume",
    "cancel": "{job} --cancel",
    "stop": "{job} --cancel",
    "follow": "{job} --follow",
    "watch": "{job} --follow",
    "export": "{job} --export FILE",
    "show": "{job}",
    "status": "{job}",
    "failed": "--failed",
    "list": "",
    "ls": "",
    "prune": "--prune 7d",
    "rm": "--prune 7d",
    "delete": "--prune 7d",
}
_VALUES: Mapping[str, str] = {"pwsh": "powershell", "verbose": "debug", "warn": "warning", "trace": "debug"}


def option(command: str, given: Sequence[str]) -> tuple[str, str] | None:
    """Return the first option among the arguments `given` to `command` that is another program's, and what to write."""
    for name, value in _options(given):
        if meant := _OPTIONS.get(command, {}).get(name) or _OPTIONS[""].get(name):
            return name, meant.format(value=value if value.isdigit() else "PORT")
    return None


def _options(given: Sequence[str]) -> Iterator[tuple[str, str]]:
    for word, following in itertools.pairwise((*given, "")):
        if word == "--":
            return
        name, _, value = word.partition("=")
        yield name, value or following


def command(name: str) -> str:
    """Return what to write for a command that there is none of, empty when nobody knows."""
    return _COMMANDS.get(name.lower(), "")


def job(given: Sequence[str]) -> str:
    """Return what to write in place of `jobs VERB …`, empty where no verb stands there."""
    verb = _VERBS.get(given[0]) if given else None
    if verb is None:
        return ""
    named = next((word for word in given[1:] if not word.startswith("-")), "JOB_ID")
    return f"promptmill jobs {verb.format(job=named)}".rstrip()


def value(text: str) -> str:
    """Return the value that is meant by another program's, else `text`."""
    return _VALUES.get(text.lower(), text)
