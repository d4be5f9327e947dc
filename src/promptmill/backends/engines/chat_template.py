"""A model's chat template, rendered without transformers, as transformers does it."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class ChatTemplate:
    """A template from a model's files: somebody else's code, so it runs in a sandbox."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        """`tokens` are the special tokens that templates name: `bos_token`, `eos_token`, `pad_token`.

        Raises `jinja2.TemplateError` for a template that cannot be read.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        self.source = source
        self._tokens = dict(tokens)
        self._template = environment.from_string(source)

    def render(self, turns: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """Return the prompt of `turns`. Raises whatever the template raises."""
        text: str = self._template.render(
            messages=turns, **{**self._tokens, "tools": None, "documents": None, **options}
        )
        return text


class _Generation(Extension):  # type: ignore[misc]
    """`{% generation %}…{% endgeneration %}`, around what a model says itself: for training, nothing to us."""

    tags = frozenset({"generation"})

    def parse(self, parser: Parser) -> list[Node]:
        """Return what stands between."""
        next(parser.stream)
        inside: list[Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return inside


def _to_json(value: Any, *, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # jinja2's own escapes what HTML would read
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return dt.datetime.now().astimezone().strftime(form)
