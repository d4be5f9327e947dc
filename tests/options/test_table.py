"""One table of options: what is added there appears on every face."""

from __future__ import annotations

import itertools
import pydoc
import runpy
from pathlib import Path
from typing import Any

import pytest
from fastmcp import Client
from fastmcp.exceptions import ToolError

import promptmill
from promptmill.cli.command_options import add_bulk
from promptmill.cli.parser import Parser
from promptmill.config.configuration import Configuration
from promptmill.core.errors import PromptmillError
from promptmill.core.feature import Feature
from promptmill.options import table
from promptmill.options.option import Flag, Group, Option, spelled
from promptmill.server import create_server
from promptmill.service.service import Service

PAGES = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "docs.py"))["PAGES"]
TURNED = Option("test_seed", int, "rows in an order drawn from this seed; goes with {limit}", flag=Flag(metavar="SEED"))


def _parser() -> Parser:
    parser = Parser("promptmill bulk")
    add_bulk(parser)
    return parser


@pytest.mark.parametrize("face", ["flag", "argument", "keyword"])
def test_the_words_of_an_option_name_only_options_that_the_face_has(face):
    known = table.options()
    for option in known.values():
        if option.name_on(face) is not None:
            assert option.words_on(face, known)  # else it raises


def test_no_name_stands_for_two_options():
    every = [option for group in table.groups() for option in group.options]
    for face in ("flag", "argument", "keyword"):
        names = [name for option in every if (name := option.name_on(face)) is not None]
        assert sorted(names) == sorted(set(names))


@pytest.mark.features
def test_rules_name_options_of_the_table():
    known = table.options()
    for option in known.values():
        rules = {named.field for named in option.needs} | {other.name for other in option.excludes}
        assert rules <= known.keys() | {"output"}, option.name
        assert {*option.rows} <= table.ROWS.keys(), option.name


@pytest.mark.features("labels")
def test_a_face_spells_an_option_in_its_own_way():
    known = table.options()
    assert spelled("{api_key_env}", "flag", known) == "--key-env"
    assert spelled("{agree}, {system}", "argument", known) == "`sure.agree`, `system_prompt`"
    assert spelled("a {{column}} of {prompt}", "keyword", known) == "a {{column}} of `prompt`"
    with pytest.raises(KeyError, match="detach"):
        spelled("{detach}", "keyword", known)


@pytest.fixture
def with_another_option(monkeypatch):
    """Add an option to the table of the core, in a group of its own."""
    monkeypatch.setattr(table, "GROUPS", (*table.GROUPS, Group("order", "the order of rows", [TURNED])))
    table._groups.cache_clear()
    yield
    table._groups.cache_clear()


@pytest.mark.usefixtures("with_another_option")
def test_an_option_that_is_added_to_the_table_appears_on_every_face():
    assert _parser().parse_args(["a.csv", "b.csv", "--test-seed", "7"]).test_seed == 7
    assert "the order of rows:\n  --test-seed SEED" in _parser().format_help()
    assert "goes with --limit" in " ".join(_parser().format_help().split())
    module = PAGES["../src/promptmill/options/keywords.py"]()
    assert "class OrderOptions(TypedDict, total=False):" in module
    assert "    test_seed: int | None\n" in module
    assert "| `--test-seed` | `test_seed` | `test_seed` | |" in PAGES["names.md"]()
    assert "`test_seed`: rows in an order drawn from this seed; goes with `limit`." in table.listing()


@pytest.mark.thorough
@pytest.mark.usefixtures("with_another_option")
async def test_an_option_that_is_added_to_the_table_is_a_key_of_the_tools_options():
    async with Client(create_server(Service(Configuration({})))) as client:
        (tool,) = [each for each in await client.list_tools() if each.name == "bulk_generate"]
    assert "test_seed" in tool.input_schema["properties"]["options"]["description"]


def test_the_options_of_a_feature_join_the_table_under_its_name(monkeypatch):
    feature = Feature(words="rows in another order", options=f"{__name__}:OPTIONS")
    monkeypatch.setattr(table, "features", lambda: {"order": feature})
    assert table.groups()[-1] == Group("order", "order: rows in another order", OPTIONS)
    assert _parser().parse_args(["a.csv", "b.csv", "--test-seed", "7"]).test_seed == 7


OPTIONS = (TURNED,)


def test_two_features_with_the_same_option_are_told(monkeypatch):
    feature = Feature(words="rows in another order", options=f"{__name__}:OPTIONS")
    monkeypatch.setattr(table, "features", lambda: {"order": feature, "turns": feature})
    with pytest.raises(PromptmillError, match="test_seed of turns is already one of order; PROMPTMILL_WITHOUT=turns"):
        table.groups()


def test_the_help_fits_on_a_screen_and_the_long_one_has_every_option(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = {}
    for words in (["--help"], ["--help", "all"], ["in.csv", "-h"]):
        with pytest.raises(SystemExit):
            _parser().parse_args(words)
        shown[" ".join(words)] = capsys.readouterr().out
    short, whole = shown["--help"].splitlines(), shown["--help all"]
    assert shown["in.csv -h"] == shown["--help"]
    assert (len(short) <= 60, max(map(len, short)) <= 80) == (True, True)
    names = [name for option in table.options().values() if (name := option.name_on("flag")) is not None]
    common = [option for option in table.options().values() if option.flag is not None and option.flag.is_common]
    assert sum(line.startswith("  -") for line in short) == len(common)
    of_features = {each.name for group in table.groups()[len(table.GROUPS) :] for each in group.options}
    lines = itertools.takewhile(bool, itertools.dropwhile(lambda line: line != "features:", short))
    assert len([*lines][1:]) == len([each for each in common if each.name in of_features]), "each takes one line"
    assert not [name for name in names if name not in whole]
    assert "`promptmill bulk --help all` shows all" in shown["--help"]


@pytest.mark.features
def test_the_help_of_python_has_every_keyword():
    text = pydoc.plain(pydoc.render_doc(promptmill.bulk))
    names = [name for option in table.options().values() if (name := option.name_on("keyword")) is not None]
    assert not [name for name in names if f"`{name}`" not in text]


def test_an_option_of_a_hidden_feature_is_refused_with_its_feature(monkeypatch, capsys):
    monkeypatch.setattr(table, "hidden", lambda: {"order": Feature(words="", options=f"{__name__}:OPTIONS")})
    options: Any = {"test_seed": 7}
    with pytest.raises(PromptmillError, match="`test_seed` needs the feature order, which is hidden here"):
        promptmill.bulk(["a"], **options)
    with pytest.raises(SystemExit):
        _parser().parse_args(["a.csv", "b.csv", "--test-seed", "7"])
    assert "--test-seed needs the feature order, which is hidden here" in capsys.readouterr().err


async def test_a_tool_names_the_hidden_feature_of_an_argument(monkeypatch):
    monkeypatch.setattr(table, "hidden", lambda: {"order": Feature(words="", options=f"{__name__}:OPTIONS")})
    async with Client(create_server(Service(Configuration({})))) as client:
        with pytest.raises(ToolError, match="test_seed is not an argument of this tool: it needs the feature order"):
            await client.call_tool("bulk_generate", {"prompts": ["a"], "test_seed": 7})
