"""Every flag of a key reaches the configuration."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import pytest

from promptmill.cli import options
from promptmill.cli.parser import Parser, add_table
from promptmill.options import table
from promptmill.options.option import Option

_VALUES = {"choices": "a,b", "schema": "name,age:number", "provider": "openai", "backend": "openai", "match": "a+"}
_VALUES |= {"price": "1/2"}
_ENDPOINT = ("--base-url", "localhost:1", "--model", "m")
_SETTING = [each for each in table.options().values() if each.keys and each.flag is not None]
_SHARED = {each.name for each in (*table.CONFIGURATION, *table.MODEL, *table.SAMPLING)}
_OF_THE_ORDER = {"max_cost"}


def _value(option: Any) -> str:
    usual = str(get_args(option.type)[0]) if get_origin(option.type) is Literal else "1"
    return _VALUES.get(option.name, usual)


@pytest.mark.parametrize("name", [each.name for each in _SETTING if each.name not in _OF_THE_ORDER])
def test_a_flag_reaches_its_key(name, monkeypatch):
    monkeypatch.setenv("A", "k")
    option = table.options()[name]
    parser = Parser()
    options.add_shared(parser)
    add_table(parser, [each for each in _SETTING if each.name not in _SHARED | _OF_THE_ORDER])
    value = "A" if name == "api_key_env" else _value(option)
    given = () if name in {"provider", "backend"} else _ENDPOINT
    values = [] if option.type is bool else [value]
    arguments = parser.parse_args([*given, str(option.name_on("flag")), *values])
    changed = options._overrides(arguments, {}) | options._schema(arguments)
    assert {part for path in changed for part in path} & {key.rpartition(".")[2] for key in option.keys}


@pytest.mark.parametrize(("given", "expected"), [([], None), (["--no-links"], True)])
def test_a_switch_that_is_left_out_leaves_the_configuration(given, expected):
    parser = Parser()
    add_table(parser, [Option("no_links", bool, "no links", keys=("sampling_params.no_links",))])
    assert parser.parse_args(given).no_links is expected
