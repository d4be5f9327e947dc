"""`promptmill init`: three questions, a configuration file with comments, and a check of it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NamedTuple

from promptmill.backends import registry
from promptmill.cli import check
from promptmill.cli.options import Parser, add_shared, configuration_of
from promptmill.cli.terminal import say
from promptmill.config import backends
from promptmill.config.loading import Configuration
from promptmill.config.parameter_file import FILE_NAME
from promptmill.core.errors import PromptmillError, config_error
from promptmill.service import choosing
from promptmill.system import runtime

_WHERE = """\
Where should prompts be answered?
  1  by a server of yours: Ollama, LM Studio, vLLM, llama.cpp, …
  2  by a provider, with your key: OpenAI, OpenRouter, Mistral, …
  3  here, by a small model on this machine's processor
"""
_EMBEDDED = "smollm2-135m-instruct"
_LOCAL = "localhost:11434"
_ONLY = "the only one it has"
_MOST_SHOWN = 12
_OF_THIS_MACHINE = "http://127.0.0.1"


class Answers(NamedTuple):
    """What the file is to say. `block` are the keys of the backend's block, each with its comment."""

    backend: str
    block: list[tuple[str, str, str]]
    notes: tuple[str, ...] = ()


def add_options(parser: Parser) -> None:
    """Add the options of the command."""
    add_shared(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the file to write; default: parameter.yaml")
    parser.add_argument("--force", action="store_true", help="replace the file if there is one")
    parser.set_defaults(unconfigured=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Ask what the options leave open, write the file, and check it. Returns the exit code of the check.

    Raises `PromptmillError` (`invalid_config`): the file exists, or nobody is there to ask.
    """
    file: Path = arguments.output or Path(FILE_NAME)
    if file.exists() and not arguments.force:
        raise config_error("", f"{file} exists; `--force` replaces it, `-o OTHER.yaml` leaves it.")
    answers = _answers_from(arguments)
    text = written(answers)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise config_error("", f"{file} cannot be written: {error.strerror}.") from None
    say(f"{file} is written; `promptmill check` tries it:\n", wrap=True)
    sys.stdout.flush()
    checked = argparse.Namespace(config=file, backend=None, set=arguments.set, json=False)
    code = check.check(checked, configuration_of(checked))
    option = "" if file == Path(FILE_NAME) else f" --config {file}"
    if code == 0:
        print(f'\nNext: promptmill generate{option} "What is the capital of France?"')
        print(f"      promptmill bulk{option} prompts.jsonl answers.jsonl")
        print(f"      promptmill install{option} claude-code   # or another client: install --help")
    else:
        todo = answers.notes or (f"The last line above says what to change in {file}.",)
        say("\n" + "\n".join((*todo, f"Then `promptmill check{option}` tries it again.")), wrap=True)
    return code


def _answers_from(arguments: argparse.Namespace) -> Answers:
    if arguments.base_url:
        where = "1"
    elif arguments.provider:
        where = "2"
    elif arguments.backend:
        where = "3"
    else:
        options = "--base-url, --provider or --backend, such as `promptmill init --base-url localhost:11434`"
        where = _ask(f"{_WHERE}1, 2 or 3", "1", options, among=("1", "2", "3"))
    if where == "1":
        url = arguments.base_url or _ask("Its address", _LOCAL, "--base-url")
        model = arguments.model or _model_at(url)
        named = [] if model == _ONLY else [("model_name", model, "")]
        return Answers("openai", [("base_url", url, "the server's address"), *named])
    if where == "2":
        return _provider(arguments)
    backend = arguments.backend or choosing.local_engine()
    model = arguments.model or _ask("The model: a folder, a model hub name, or", _EMBEDDED, "--model")
    return Answers(backend, [("model_name_or_path", model, "a folder, a model hub name, or the embedded model")])


def _model_at(url: str) -> str:
    """Return the model that is chosen of those the server has. Raises `PromptmillError` for a URL that cannot be."""
    raw = {"backend": "openai", "backend_configs": {"openai": {"base_url": url}}}
    try:
        names = runtime.run(choosing.models_at(Configuration(raw).plan))
    except PromptmillError as error:
        raise config_error("", error.message.replace("backend_configs.openai.base_url", "its address", 1)) from None
    if len(names) < 2:
        return _ask("The model, as the server calls it", _ONLY, "--model", unasked=_ONLY if names else None)
    has = f"it has {', '.join(names[:_MOST_SHOWN])}{', …' if len(names) > _MOST_SHOWN else ''}"
    say(f"{has[0].upper()}{has[1:]}", wrap=True)
    return _ask("The model", names[0], f"--model: {has}")


def _provider(arguments: argparse.Namespace) -> Answers:
    rows = {
        name: (base_url, key_env)
        for name, base_url, key_env, _ in registry.providers()
        if key_env and not base_url.startswith(_OF_THIS_MACHINE)
    }
    name = arguments.provider
    if not name:
        say(f"Providers: {', '.join(rows)}", wrap=True)
        name = _ask("The provider", "openai", "--provider", among=tuple(rows))
    key_env = arguments.key_env or rows.get(name, ("", ""))[1]
    model = arguments.model or _ask("The model", "", "--model")
    block = [("provider", name, "`promptmill providers` lists them"), ("model_name", model, "")]
    if name in rows and not rows[name][0]:  # each customer has an address there
        block.append(("base_url", _ask("Its address", "", "--base-url"), "the address of your resource"))
    notes: tuple[str, ...] = ()
    if key_env:
        block.append(("api_key_env", key_env, "the environment variable that holds your key"))
        if not os.environ.get(key_env):
            notes = (f"`export {key_env}=…` gives promptmill your key.",)
    return Answers("openai", block, notes)


def _ask(question: str, default: str, option: str, *, among: tuple[str, ...] = (), unasked: str | None = None) -> str:
    """Ask until there is an answer; where nobody can be asked it is `unasked`. Raises `PromptmillError` without one."""
    while True:
        asked = f"{question}{f' [{default}]' if default else ''}: "
        try:
            said = (_answer_to(asked) if sys.stdin.isatty() else _line_for(asked)).strip() or default
        except KeyboardInterrupt:
            print()  # the shell's next prompt begins a line
            raise
        except EOFError:
            if unasked is not None:
                return unasked
            why = "there is no answer" if sys.stdin.isatty() else "stdin is no terminal, so nobody can be asked"
            raise config_error("", f"{why}; say it with {option}.") from None
        if said and (not among or said in among):
            return said
        print(f"Write one of {', '.join(among)}." if among else "It needs one.")


def _answer_to(asked: str) -> str:
    print(asked, end="", flush=True)
    try:
        return input()
    except EOFError:
        print()
        raise


def _line_for(asked: str) -> str:
    """Return the next line of a pipe; what is asked is shown with it, and not where nothing comes."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    print(f"{asked}{line.strip()}")
    return line


def written(answers: Answers) -> str:
    """Return the file."""
    import yaml

    def quoted(value: str) -> str:
        return yaml.safe_dump(value, allow_unicode=True, width=1000).removesuffix("...\n").rstrip("\n")

    rows = [f"    {key}: {quoted(value)}{f'  # {note}' if note else ''}" for key, value, note in answers.block]
    more = ""
    if backends.record(answers.backend).needs_endpoint:
        more = """
    # concurrency: 64  # most requests in flight; a server of your own gets more for as long as it answers more
    # rpm: 500         # most requests a minute, where the provider says so"""
    return f"""\
# What promptmill starts from; every key: docs/configuration.md. `${{VAR}}` reads the environment.

backend: {answers.backend}
backend_configs:
  {answers.backend}:
{chr(10).join(rows)}{more}

sampling_params:
  # temperature: 0   # always the likeliest answer; left out, the model's own default counts
  max_tokens: 1024   # longest answer, in tokens

# system_prompt: You are brief.
# max_cost: 5.00     # most that a job, or a server, may spend (US dollars, where the price is known)
# cache: true        # keep answers at temperature 0 and never pay for them twice
"""
