"""`promptmill init`, which writes a configuration after three questions, and the check of a configuration in stages."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import orjson

from promptmill.backends import registry
from promptmill.backends.protocol import Call, CheckStage, Facts, Failure
from promptmill.cli.error_words import explained, option_of
from promptmill.cli.options import configuration_of, settings_given
from promptmill.cli.terminal import say
from promptmill.config import backends
from promptmill.config.assignments import put
from promptmill.config.backends import AUTO, EMBEDDED
from promptmill.config.configuration import Configuration
from promptmill.config.parameter_file import FILE_NAME
from promptmill.core.errors import PromptmillError, config_error, redact
from promptmill.core.feature import client_command
from promptmill.core.request import conversation_from_prompt
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import counted, listed
from promptmill.service import choosing
from promptmill.service.service import Service
from promptmill.system import runtime

_WHERE = """\
Where should prompts be answered?
  1  by a server of yours: Ollama, LM Studio, vLLM, llama.cpp, …
  2  by a provider, with your key: OpenAI, OpenRouter, Mistral, …
  3  here, by a small model on this machine's processor
"""
_LOCAL = "localhost:11434"
_ONLY = "the only one it has"
_OF_THIS_MACHINE = "http://127.0.0.1"
_ADDRESS = re.compile(r"https?:/|[\w.-]+:\d")
_LOOK_S = 0.2
_OF_ENDPOINT = """\
    # concurrency: 64  # most requests in flight; a server of your own gets more for as long as it answers more
    # rpm: 500         # most requests a minute, if the provider has such a limit
"""
_OF_SAMPLING = """\
  # temperature: 0   # always the likeliest answer; without it, the model's own default applies
  # max_tokens: 4096 # longest answer, thinking included; without it, the endpoint's own limit applies
"""
_OF_ALL = """\
# system_prompt: You are brief.
# max_cost: 5.00     # most that a job, or a server, may spend (US dollars, where the price is known)
# cache: true        # keep answers at temperature 0 and never pay for them twice
# models:            # more models, each for `--model` by its name
#   strong: {openai: {provider: openai, model_name: gpt-6.1-sol}, price: {input: 2, output: 10}}
"""


class SetupAnswers(NamedTuple):
    """The answers for the new file. `block`: the keys of the backend's block, as `(key, value, comment)`."""

    backend: str
    block: list[tuple[str, str, str]]
    notes: tuple[str, ...] = ()


def run_init(arguments: argparse.Namespace) -> int:
    """Ask about missing options, write the file, and check it. Return the exit code of the check.

    Raises `PromptmillError` (`invalid_config`) if the file exists, or if stdin gives no answers.
    """
    file: Path = arguments.output or Path(FILE_NAME)
    if file.exists() and not arguments.force and not _is_unchecked(file):
        raise config_error("", f"{file} exists; `--force` replaces it, `-o OTHER.yaml` leaves it.")
    arguments.base_url = arguments.base_url or arguments.url
    answers = _answers_from(arguments)
    content = _content(answers, arguments)
    Configuration.load(file, content=content)
    text = written(content, {key: note for key, _, note in answers.block})
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise config_error("", f"{file} cannot be written: {error.strerror}.") from None
    say(f"{file} is written; `promptmill models --check` tries it:\n", wrap=True)
    sys.stdout.flush()
    checked = argparse.Namespace(config=file, backend=None, set=[], json=False)
    code = check(checked, configuration_of(checked))
    option = "" if file == Path(FILE_NAME) else f" --config {file}"
    if code == 0:
        print(f'\nNext: promptmill generate{option} "What is the capital of France?"')
        print(f"      promptmill bulk{option} prompts.jsonl answers.jsonl")
        if command := client_command():
            print(f"      {command}{option} claude-code   # or another client: {command.split()[1]} --help")
    else:
        file.write_text(f"{_unchecked(text)}\n{text}", encoding="utf-8")
        todo = answers.notes or (f"The last line above names the change that {file} needs.",)
        say("\n" + "\n".join((*todo, f"Then `promptmill models --check{option}` tries it again.")), wrap=True)
    return code


def _unchecked(text: str) -> str:
    """Return the line that is written above the text of a configuration file whose check failed."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"# Its check failed: until this file is edited, `promptmill init` replaces it ({digest})."


def _is_unchecked(file: Path) -> bool:
    """Return whether `file` may be replaced: `init` wrote it, its check failed, and it was not edited afterwards."""
    try:
        first, _, text = file.read_text(encoding="utf-8").partition("\n")
    except (OSError, ValueError):
        return False
    return first == _unchecked(text)


def _answers_from(arguments: argparse.Namespace) -> SetupAnswers:
    server = provider = ""
    if arguments.base_url:
        where = "1"
    elif arguments.provider:
        where = "2"
    elif arguments.backend:
        where = "3"
    else:
        options = "--base-url, --provider or --backend, such as `promptmill init --base-url localhost:11434`"
        server, provider = runtime.run(choosing.around())
        works = "1" if server else "2" if provider else "3"
        where = _ask(f"{_WHERE}1, 2, 3 or an address", works, options, among=("1", "2", "3"), or_address=True)
    pasted = where if where not in {"1", "2", "3"} else ""
    if where == "1" or pasted:
        url = arguments.base_url or pasted or _ask("Its address", server or _LOCAL, "--base-url")
        model = arguments.model or _model_at(url)
        named = [] if model == _ONLY else [("model_name", model, "")]
        return SetupAnswers("openai", [("base_url", url, "the server's address"), *named])
    if where == "2":
        return _provider(arguments, provider or "openai")
    backend = arguments.backend or choosing.local_engine()
    model = arguments.model or _ask("The model: a folder, a model hub name, or", EMBEDDED, "--model")
    return SetupAnswers(backend, [("model_name_or_path", model, "a folder, a model hub name, or the small model")])


def _content(answers: SetupAnswers, arguments: argparse.Namespace) -> JsonDict:
    """Return the keys of the file: the answers, and the settings of other options (`--price`, `--set`, …)."""
    block = {key: value for key, value, _ in answers.block}
    content: JsonDict = {"backend": answers.backend, "backend_configs": {answers.backend: block}}
    arguments.model = arguments.backend = None  # `answers` has both
    for path, value in settings_given(arguments, content).items():
        if value is not None:
            put(content, path, value)
    return content


def _model_at(url: str) -> str:
    raw = {"backend": "openai", "backend_configs": {"openai": {"base_url": url}}}
    try:
        names = [*runtime.run(choosing.models_at(Configuration(raw).config))]
    except PromptmillError as error:
        raise config_error("", error.message.replace("backend_configs.openai.base_url", "its address", 1)) from None
    if len(names) < 2:
        return _ask("The model, as the server calls it", _ONLY, "--model", unasked=_ONLY if names else None)
    has = f"it has {listed(names)}"
    say(f"{has[0].upper()}{has[1:]}", wrap=True)
    return _ask("The model", names[0], f"--model: {has}")


def _provider(arguments: argparse.Namespace, likely: str) -> SetupAnswers:
    rows = {
        row.provider: (row.base_url, row.key_env)
        for row in registry.providers()
        if row.key_env and not row.base_url.startswith(_OF_THIS_MACHINE)
    }
    name = arguments.provider
    if not name:
        say(f"Providers: {', '.join(rows)}", wrap=True)
        name = _ask("The provider", likely, "--provider", among=tuple(rows))
    key_env = arguments.key_env or rows.get(name, ("", ""))[1]
    model = arguments.model or _ask("The model", "", "--model")
    block = [("provider", name, "`promptmill models --providers` lists them"), ("model_name", model, "")]
    if name in rows and not rows[name][0]:  # each customer has a different address there
        block.append(("base_url", _ask("Its address", "", "--base-url"), "the address of your resource"))
    notes: tuple[str, ...] = ()
    if key_env:
        block.append(("api_key_env", key_env, "the environment variable that holds your key"))
        if not os.environ.get(key_env):
            notes = (f"`export {key_env}=…` gives promptmill your key.",)
    return SetupAnswers("openai", block, notes)


def _ask(
    question: str,
    default: str,
    option: str,
    *,
    among: tuple[str, ...] = (),
    or_address: bool = False,
    unasked: str | None = None,
) -> str:
    """Ask a question until the answer is valid. Return the answer, or `unasked` if stdin has ended.

    `or_address`: an address that the user pasted is an answer, too.

    Raises `PromptmillError` (`invalid_config`) if stdin has ended and `unasked` is None.
    """
    while True:
        asked = f"{question}{f' [{default}]' if default else ''}: "
        try:
            answer = (_answer_to(asked) if sys.stdin.isatty() else _line_for(asked)).strip() or default
        except KeyboardInterrupt:
            print()  # so that the shell's next prompt starts on a new line
            raise
        except EOFError:
            if unasked is not None:
                return unasked
            why = "there is no answer" if sys.stdin.isatty() else "stdin is not a terminal and has no answer"
            raise config_error("", f"{why}; use {option}.") from None
        if answer and (not among or answer in among or (or_address and _ADDRESS.match(answer))):
            return answer
        print(f"Write one of {', '.join(among)}." if among else "An answer is needed.")


def _answer_to(asked: str) -> str:
    print(asked, end="", flush=True)
    try:
        return input()
    except EOFError:
        print()
        raise


def _line_for(asked: str) -> str:
    """Read an answer from the pipe, print it after its question, and return it. Raises `EOFError` at the pipe's end."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    print(f"{asked}{line.strip()}")
    return line


def written(content: JsonObject, notes: Mapping[str, str]) -> str:
    """Return the text of the configuration file. `notes`: comments behind the keys of a backend's block."""
    sampling = content.get("sampling_params") or {}
    others = {key: its for key, its in content.items() if key not in {"backend", "backend_configs", "sampling_params"}}
    blocks = "".join(
        f"  {name}:\n{_lines(block, 2, notes)}"
        f"{_unset(_OF_ENDPOINT, block) if backends.record(name).needs_endpoint else ''}"
        for name, block in {content["backend"]: {}, **content["backend_configs"]}.items()
    )
    return f"""\
# The configuration of promptmill. docs/configuration.md lists every key. `${{VAR}}` reads the environment.

backend: {content["backend"]}
backend_configs:
{blocks}
sampling_params:
{_lines(sampling, 1)}{_unset(_OF_SAMPLING, sampling)}
{_lines(others, 0)}{_unset(_OF_ALL, others)}"""


def _lines(content: JsonObject, depth: int, notes: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return keys and values as YAML, indented by `depth` steps. `notes`: comments behind the values."""
    import yaml

    shown = {key: yaml.safe_dump({key: value}, allow_unicode=True, width=1000) for key, value in content.items()}
    noted = (text.rstrip("\n") + (f"  # {notes[key]}" if notes.get(key) else "") for key, text in shown.items())
    return "".join(textwrap.indent(text + "\n", "  " * depth) for text in noted)


def _unset(comments: str, content: JsonObject) -> str:
    """Return the comments that show further keys, without the keys that the file has."""
    shown = (part for part in re.split(r"(?m)^(?= *# \w+:)", comments) if part)
    return "".join(part for part in shown if part.split(":")[0].strip("# ") not in content)


def check(arguments: argparse.Namespace, configuration: Configuration) -> int:
    """Test the configuration, finally with a one-token request. Return 0, or 2 if a stage fails.

    `arguments`: the parsed command line, with `json`.
    """
    as_json = arguments.json
    steps: list[CheckStage] = []

    def report(step: CheckStage) -> None:
        steps.append(step)
        if not as_json:
            _print(step)

    report(CheckStage("configuration", ok=True, detail=configuration.origin))
    try:
        runtime.run(_try_stages(configuration, report))
    except PromptmillError as error:
        error = explained(error, arguments, configuration)
        report(CheckStage("problem", ok=False, detail=redact(error.worded(option_of)), code=str(error.code)))
    good = all(step.ok for step in steps)
    if as_json:
        say(orjson.dumps({"ok": good, "steps": [_as_dict(step) for step in steps]}).decode())
    return 0 if good else 2


def _print(step: CheckStage) -> None:
    say(f"{'FAIL' if not step.ok else 'warn' if step.warns else 'ok  '}  {step.step}: {step.detail}", wrap=True)
    sys.stdout.flush()


def _as_dict(step: CheckStage) -> dict[str, object]:
    found: dict[str, object] = {"step": step.step, "ok": step.ok, "detail": step.detail}
    return found | ({"warning": True} if step.warns else {}) | ({"code": step.code} if step.code else {})


async def _try_stages(configuration: Configuration, report: Callable[[CheckStage], None]) -> None:
    if configuration.config.backend == AUTO:
        configuration = await choosing.decided(configuration)
    config = configuration.config
    registry.check_name(config.backend)
    registry.check_key(config)
    detail = config.chosen.removeprefix("backend ") or f"{config.backend}, {config.model or 'no model named'}"
    report(CheckStage("backend", ok=True, detail=detail))
    for warning in config.warnings:
        report(CheckStage("configuration", ok=True, detail=warning, warns=True))
    if not await registry.diagnose(config, report):
        await _load_and_ask(configuration, report)


async def _load_and_ask(configuration: Configuration, report: Callable[[CheckStage], None]) -> None:
    config = configuration.config.with_sampling({"max_tokens": 1})
    service, call = Service(configuration), Call(Facts(total=1))
    try:
        started = time.monotonic()
        prompt = conversation_from_prompt("Say yes.", "the trial prompt")
        work = asyncio.ensure_future(service.generate([prompt], call, config=config))
        activity = ""
        while not work.done():
            await asyncio.wait({work}, timeout=_LOOK_S)
            if service.activity not in {activity, ""}:
                activity = service.activity
                report(CheckStage("loading", ok=True, detail=activity.removeprefix("Loading ")))
        (outcome,) = work.result()
        if isinstance(outcome, Failure):
            raise outcome.error
        tokens = outcome.usage.completion_tokens
        seconds = time.monotonic() - started
        report(CheckStage("answer", ok=True, detail=f"{counted(tokens, 'token')}, {seconds:.1f} s with loading"))
        for warning in [warning for warning in call.warnings if warning not in config.warnings]:
            report(CheckStage("answer", ok=True, detail=warning, warns=True))
    finally:
        await service.aclose()
