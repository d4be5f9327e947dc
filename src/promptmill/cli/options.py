"""Options shared by several commands, the configuration made from them, and notes about it."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptmill.cli.parser import Parser, add_table
from promptmill.cli.terminal import say
from promptmill.core.errors import Code, PromptmillError, config_error
from promptmill.core.feature import order_parts
from promptmill.options import table
from promptmill.options.check import check

if TYPE_CHECKING:  # imported on use: the import takes a tenth of a second
    from promptmill.config.configuration import Configuration
    from promptmill.config.model_config import ModelConfig
    from promptmill.core.values import JsonDict

ARGUMENTS: Mapping[str, str] = {
    key.rpartition(".")[2]: option.stored
    for option in table.options().values()
    for key in option.keys
    if option.flag is not None
}
"""For each configuration key, the command-line argument that sets it."""
OF_THE_MODEL = ("backend", "model", "base_url", "provider", "key_env", "temperature", "max_tokens", "concurrency")
_ENDPOINTS = ("openai-compatible", "openai-api", "litellm", "endpoint")  # names that users wrongly give for a backend


def text_of(option: str, file: Path) -> str:
    """Return the text in an option's file. Raises `PromptmillError` (`invalid_config`)."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = f"{error.strerror}; check the path"
    except ValueError:
        reason = "it is not UTF-8 text"
    raise config_error(option, f"{file} cannot be read: {reason}.")


def add_shared(parser: Parser, *, named: Sequence[str] = (), several: bool = False) -> None:
    """Add, in separate groups, the options for the configuration, and those for a model and its settings.

    `named`: other names for `--model`. `several`: the command takes several models.
    """
    add_table(parser.add_argument_group("configuration"), table.CONFIGURATION)
    model = parser.add_argument_group("model and settings", "instead of keys of the file")
    shared = [option for option in (*table.MODEL, *table.SAMPLING) if option.name != "tier"]
    add_table(model, shared, named=named, several=several)


def configuration_of(arguments: argparse.Namespace) -> Configuration:
    """Return the file's configuration with values replaced by options. Raises `PromptmillError` (`invalid_config`)."""
    from promptmill.config.assignments import assigned
    from promptmill.config.configuration import HTTP_DEFAULTS, Configuration

    given = argparse.Namespace(**table.with_implied(vars(arguments)))
    if given.backend is not None:
        _check_backend(given.backend)
    try:
        return Configuration.load(
            arguments.config,
            assignments=assigned(arguments.set),
            backend=given.backend,
            values=lambda raw: _overrides(given, raw) | _schema(given),
            trust_client=getattr(arguments, "trust_client", False),
            defaults=HTTP_DEFAULTS if getattr(arguments, "http", None) else {},
        )
    except PromptmillError as error:
        raise naming_option(error, arguments) from None


def settings_given(arguments: argparse.Namespace, raw: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Return the settings from options and `--set`, by path. `raw`: the file's content.

    Raises `PromptmillError` (`invalid_config`).
    """
    from promptmill.config.assignments import assigned

    try:
        own = argparse.Namespace(**table.with_implied(vars(arguments)))
        given = _overrides(own, raw) | _schema(own)
    except PromptmillError as error:
        raise naming_option(error, arguments) from None
    return given | {tuple(path.split(".")): value for path, value in assigned(arguments.set).items()}


def naming_option(error: PromptmillError, arguments: argparse.Namespace) -> PromptmillError:
    """Return `error`; if it is about a configuration key that an option set, the option replaces the key's path."""
    first, *others = error.parts
    path, colon, said = first.partition(": ") if isinstance(first, str) else ("", "", "")
    argument = ARGUMENTS.get(path.rpartition(".")[2], "")
    if error.code is not Code.INVALID_CONFIG or not colon or getattr(arguments, argument, None) in (None, []):
        return error
    return config_error(f"--{argument.replace('_', '-')}", said, *others)


def _check_backend(name: str) -> None:
    """Raise `PromptmillError` (`invalid_config`) with the right options if `--backend NAME` names an endpoint."""
    from promptmill.backends import registry
    from promptmill.config.backends import is_named

    if is_named(name):
        return
    plain = name.lower().replace("_", "-")
    if plain == "ollama":
        instead = "Ollama is an endpoint; instead: --base-url localhost:11434 --model NAME"
    elif plain in _ENDPOINTS:
        instead = "instead: --base-url URL --model NAME"
    elif any(row.provider == plain for row in registry.providers()):
        instead = f"{plain} is a provider; instead: --provider {plain} --model NAME"
    else:  # any other unknown name is reported together with other mistakes
        return
    raise config_error(f"--backend {name}", instead)


def _schema(arguments: argparse.Namespace) -> dict[tuple[str, ...], Any]:
    schema: Path | JsonDict | None = getattr(arguments, "schema", None)
    is_many = getattr(arguments, "choices_many", False)
    if schema is None and not is_many:
        return {}
    from promptmill.answers.response_format import asking_for
    from promptmill.jobs.inputs.short_forms import schema_in, schema_of_many

    if is_many:
        check({"choices": arguments.choices, "choices_many": True}, face="flag")
        schema = schema_of_many(arguments.choices.texts)
    elif isinstance(schema, Path):
        try:
            schema = schema_in(schema)
        except PromptmillError as error:
            raise config_error("--schema", error.message) from None
    if not schema:
        return {}
    return {
        ("sampling_params", "response_format"): asking_for(schema),
        ("sampling_params", "choices"): None,
        ("sampling_params", "definitions"): dict(arguments.choices.definitions) or None if is_many else None,
    }


def _overrides(arguments: argparse.Namespace, raw: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Return the settings from shared options, by path. `raw`: the file's content.

    Raises `PromptmillError` (`invalid_config`) for an option that the backend does not support.
    """
    from promptmill.config import model_config

    given = {key: value for key, name in ARGUMENTS.items() if (value := getattr(arguments, name, None)) is not None}
    if "choices" in given:
        del given["definitions"]
        given |= given["choices"].sampling
    given.pop("response_format", None)  # see `_schema`
    endpoint = {key: given[key] for key in table.keys_of(table.ENDPOINT) & given.keys()}
    model = getattr(arguments, "model", None)
    given_parts = (entry for entries in order_parts() for entry in entries if entry.may_be_asked(vars(arguments)))
    if model is None and endpoint.keys() & {"base_url", "provider"} and any(given_parts):
        from promptmill.jobs.store.plan import plan_of  # imported on use: few commands have a plan

        model = plan_of(vars(arguments), [""]).only_model
    return model_config.settings_of(
        raw,
        backend=arguments.backend,
        endpoint=endpoint,
        model=model,
        sampling={key: given[key] for key in table.keys_of(table.SAMPLING_KEYS) & given.keys()},
        tier=getattr(arguments, "tier", None),
        price=getattr(arguments, "price", None),
    )


def note_once(config: ModelConfig) -> None:
    """On a terminal, report once which host gets a key, and that the embedded model is only for trials."""
    if not sys.stderr.isatty():
        return
    from promptmill.backends import registry
    from promptmill.system.state import own_folder

    notes = [f"{host} receives the key in {variable}." for host, variable in registry.keys_sent(config)]
    if config.is_embedded:
        known = [(one.provider, one.key_env) for one in registry.providers() if one.key_is_set]
        use = f"--provider {known[0][0]} uses the key in {known[0][1]} and" if known else "--base-url or --provider"
        notes.append(f"{config.model} is a small model to try promptmill with; {use} gives better answers.")
    for note in notes:
        seen = own_folder() / "noted" / hashlib.sha256(note.encode()).hexdigest()[:16]
        if seen.exists():
            continue
        with contextlib.suppress(OSError):  # if the mark cannot be stored, the note is shown again
            seen.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            seen.touch()
        say(f"note: {note}", sys.stderr, wrap=True)
