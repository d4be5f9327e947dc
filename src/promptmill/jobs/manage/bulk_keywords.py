"""The keyword arguments of `promptmill.bulk`: their help, the configuration for them, and errors that name them."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import inspect
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

from promptmill.answers.response_format import with_schema
from promptmill.config import model_config
from promptmill.config.configuration import Configuration
from promptmill.core.errors import ArgumentError, Code, Named, PromptmillError, input_error
from promptmill.core.request import BESIDE, Sampling
from promptmill.core.wording import cut, did_you_mean, shape
from promptmill.jobs.store.plan import plan_of
from promptmill.options import table

P = ParamSpec("P")
R = TypeVar("R")
_ARGUMENTS = {
    **{key.rpartition(".")[2]: each.name for group in table.GROUPS for each in group.options for key in each.keys},
    "prompt_template": "prompt",
    "input": "rows",
    "default_model": "model",
    "system_prompt": "system",
}
"""The name of the argument that sets a field or configuration key, by the field's name or the last part of the key."""
_FIELD_TYPES = MappingProxyType(
    {
        str: "text",
        int: "integer",
        float: "number",
        bool: "boolean",
        list: "list",
        dt.date: "date",
        dt.datetime: "time",
    }
)
_PATHS = ("output", "config", "state")
_LISTS = (list, tuple, set, frozenset)
_KINDS: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        "prompt": ((str, Sequence, Mapping), "a text, a list or a dict"),
        "model": ((str, Sequence), "a text or a list"),
        "fields": ((bool, str, Sequence, Mapping), "a text, a list, a dict or False"),
        "settings": ((Mapping,), 'a dict: `settings={"backend_configs.openai.rpm": 60}`'),
        "columns": (_LISTS, 'a list of names: `columns=["answer", "error"]`'),
        "tools": (_LISTS, "a list of dicts, as OpenAI has them"),
        "check": (Callable, "a function that takes an answer and its row"),
        **dict.fromkeys(("backend", "tier", "system"), ((str,), "a text")),
        **dict.fromkeys(_PATHS, ((str, os.PathLike), "a path")),
    }
)
"""The types of options that take several or unusual types, and the words for them in an error about a wrong type."""
_LONGEST_NAME = 30  # max characters of a prompt's name, which each row of the output repeats
_KEY_AT_START = re.compile(r"^(?:[^:]*: )?(?:\w+\.)*(\w+)(?=: )")


def takes_options(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: adds options to a function's help, raises `ArgumentError` for unknown ones, and shortens tracebacks.

    The text of a `PromptmillError` suffices, and a traceback through promptmill would fill the screen of a notebook.
    """

    @functools.wraps(function)
    def called(*args: P.args, **options: P.kwargs) -> R:
        known = {each.name_on("keyword") for each in table.options().values()}
        for name in set[str](options) - known - {"rows", "output"}:
            if needs := table.needs_hidden(name, "keyword"):
                raise input_error(f"`{name}` {needs}.")
            meant = did_you_mean(name, ["rows", "output", *(each for each in known if each)], "see help(bulk)")
            raise ArgumentError(Code.INVALID_INPUT, f"{function.__name__}() has no argument {name!r}; {meant}", "")
        try:
            return function(*args, **options)
        except PromptmillError as error:
            raise error.with_traceback(None) from None

    called.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{table.listing()}"
    return called


@contextlib.contextmanager
def errors_of(given: Collection[str]) -> Iterator[None]:
    """Convert each `PromptmillError` to an error whose text is one line and names arguments of `bulk`.

    If an argument in `given` sets the invalid configuration key, the text names this argument instead of the key.
    """

    def argument(path: re.Match[str]) -> str:
        name = _ARGUMENTS.get(path[1], path[1])
        return f"`{name}`" if name in given else path[0]

    try:
        yield
    except PromptmillError as error:
        text = " ".join([error.worded(argument_of), *getattr(error, "__notes__", ())])
        if error.code is Code.INVALID_CONFIG:
            text = _KEY_AT_START.sub(argument, text)
        shown = PromptmillError(error.code, " ".join(text.split()), "")
        shown.said = error.said
        raise shown from None


def argument_of(named: Named) -> str:
    """Return the argument that an error names; `settings={…}` for a configuration key that has no argument."""
    if named.field == "shell":
        return f"`{named.value}`"
    if named.field in {"status", "command"}:
        return f"`promptmill {'jobs ' if named.field == 'status' else ''}{named.value}".rstrip() + "`"
    if named.field.startswith("prices."):
        by_model = {named.field.removeprefix("prices."): named.value}
        return f"`price={by_model!r}`"
    key = named.field.rpartition(".")[2]
    name = _ARGUMENTS.get(key, key)
    option = table.options().get(name)
    if option is None or option.keyword is None:
        return f"`settings={{{named.field!r}: {named.value!r}}}`" if named.value != "" else f"`{named.field}`"
    value = True if named.value == "" and option.type is bool and option.default is False else named.value
    return f"`{name}`" if value == "" else f"`{name}={value!r}`"


def option_forms(given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert options to the form of the command line, if they have another form in Python: a list of prompts, and a
    list or dict of fields. Raises `PromptmillError`.

    >>> option_forms({"prompt": ["Is {{x}} so?", "Why {{x}}?"], "fields": {"amount": float, "due": "date"}})
    {'prompt': {'Is {{x}} so?': 'Is {{x}} so?', 'Why {{x}}?': 'Why {{x}}?'}, 'fields': 'amount:number,due:date'}
    """
    forms: dict[str, Any] = {}
    for name, value in given.items():
        if value is not None and (wanted := _wanted_kind(name, value)):
            raise input_error(f"`{name}` is {shape(value)}; write {wanted}.")
    for name in _PATHS:
        check_path(name, given.get(name) or "")
    prompts, fields = given.get("prompt"), given.get("fields")
    if isinstance(prompts, Sequence) and not isinstance(prompts, str):
        if not prompts or not all(isinstance(text, str) for text in prompts):
            raise input_error("`prompt` is a list; send texts in it.")
        names = [cut(" ".join(text.split()), _LONGEST_NAME) for text in prompts]
        if len({*names}) < len(names):
            names = [str(at) for at in range(1, len(names) + 1)]
        forms["prompt"] = dict(zip(names, prompts, strict=True)) if len(names) > 1 else prompts[0]
    if isinstance(fields, Mapping):
        forms["fields"] = ",".join(f"{_field_name(name)}:{_field_type(name, kind)}" for name, kind in fields.items())
    elif isinstance(fields, Sequence) and not isinstance(fields, str):
        forms["fields"] = ",".join(map(str, fields))
    return forms


def _wanted_kind(name: str, value: object) -> str:
    """If `value` has a wrong type, return words for the value that the option needs; else return `""`."""
    option = table.options().get(name)
    if name in _KINDS:
        kinds, words = _KINDS[name]
        has_texts = name != "columns" or not isinstance(value, _LISTS) or all(isinstance(each, str) for each in value)
        return "" if isinstance(value, kinds) and has_texts else words
    if option is None or option.keyword is None or option.keyword.type:
        return ""
    if option.type is bool and not isinstance(value, bool):
        return "True or False"
    return "a text" if option.type is str and isinstance(value, (*_LISTS, Mapping)) else ""


def check_path(name: str, path: str | os.PathLike[str]) -> None:
    """Raise `PromptmillError` (`invalid_input`) for a path with a character that no path can have."""
    try:
        is_path = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        is_path = False
    if not is_path:
        raise input_error(f"`{name}` has a NUL or half of a surrogate pair, which no path can have; remove it.")


def _field_name(name: object) -> str:
    if not isinstance(name, str) or set(name) & set(",:?!"):
        raise input_error(
            f"`fields`: {str(name)[:40]!r} is no name of a field; write it without , : ? and !, or as `schema`."
        )
    return name


def _field_type(name: str, kind: object) -> str:
    if isinstance(kind, str):
        return kind
    if isinstance(kind, type) and kind in _FIELD_TYPES:
        return _FIELD_TYPES[kind]
    if (
        isinstance(kind, Sequence)
        and kind
        and all(isinstance(each, str) and not set(each) & set(",|?!") for each in kind)
    ):
        return "|".join(kind)
    raise input_error(
        f'`fields`: {name} has no type; use a text such as "date", a list of texts, str, int, float or bool.'
    )


def configuration_of(given: Mapping[str, Any]) -> Configuration:
    """Return the configuration for the options `given` to `bulk`. Raises `PromptmillError`."""
    given = table.with_implied(given)
    endpoint = {name: given[name] for name in table.keys_of(table.ENDPOINT) if name in given}
    config, backend, settings = given.get("config"), given.get("backend"), given.get("settings", {})
    sampling = {name: given[name] for name in Sampling.model_fields.keys() | BESIDE if name in given}
    sampling = dict(with_schema(sampling, given.get("schema")))
    models = given.get("model")
    model = models if models is None or isinstance(models, str) else next(iter(models), None)
    if model is None and endpoint.keys() & {"base_url", "provider"}:
        model = plan_of(given, [""]).only_model

    def values(raw: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
        return model_config.settings_of(
            raw,
            backend=backend,
            endpoint=endpoint,
            model=model,
            sampling=sampling,
            tier=given.get("tier"),
            price=given.get("price"),
        )

    path = None if config is None else Path(config)
    return Configuration.load(path, assignments=settings, backend=backend, values=values)
