"""docs/names.md has all names of a job and a comparison, and none that the code does not have."""

import argparse
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import promptmill
from promptmill.cli import main as cli
from promptmill.config.settings import Settings
from promptmill.options.keywords import BulkOptions, ModelOptions
from promptmill.options.table import of_answers

pytestmark = pytest.mark.features
_PAGE = (Path(__file__).parent.parent / "docs" / "names.md").read_text(encoding="utf-8")
_HELP = {"-h", "--help"}
_MODEL = {  # options of each command that may ask a model; the table of `bulk` has them
    *("--config", "--backend", "--set", "--model", "-m", "--base-url", "--provider", "--key-env"),
    *("--temperature", "--max-tokens", "--concurrency", "--price"),
    *(str(option.name_on("flag")) for option in of_answers()),
}


def column(command: str, at: int) -> set[str]:
    """Return the names in a column of the table below the heading of a command."""
    section = re.split(r"^## ", _PAGE, flags=re.MULTILINE)
    (table,) = [text for text in section if f"the command `{command}`" in text.partition("\n")[0]]
    cells = [line.split("|")[at + 1] for line in table.splitlines() if line.startswith("| ")][1:]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def options(command: str) -> set[str]:
    """Return the options of a command, and its places as `--help` shows them."""
    (commands,) = [each for each in cli.parser_of()._actions if isinstance(each, argparse._SubParsersAction)]
    actions = commands.choices[command]._actions
    places = {str(each.metavar or each.dest).partition("|")[0] for each in actions if not each.option_strings}
    return {name for each in actions for name in each.option_strings} - _HELP | places


@pytest.mark.parametrize("command", ["bulk", "compare", "improve", "topics", "review", "jobs", "generate"])
def test_the_options_of_a_command_are_those_of_the_page(command):
    shown = column(command, 1)
    assert shown <= options(command)
    assert options(command) - shown <= (set() if command == "bulk" else _MODEL)


def test_the_arguments_in_python_are_those_of_the_page():
    from promptmill.features.improve.improvement import ImproveOptions

    assert column("bulk", 3) == BulkOptions.__annotations__.keys() | {"rows", "output"}
    assert column("compare", 3) == set(inspect.signature(promptmill.compare).parameters) - {"options"}
    own = {*inspect.signature(promptmill.improve).parameters} - {"options"}
    assert column("improve", 3) == own | (
        ImproveOptions.__annotations__.keys() - ModelOptions.__annotations__.keys() - {"temperature", "max_tokens"}
    )


async def test_the_arguments_of_the_tools_are_those_of_the_page(talk):
    tools = {tool.name: _arguments(tool.input_schema["properties"]) for tool in await talk.client.list_tools()}
    assert column("bulk", 2) == tools["bulk_generate"]
    assert column("compare", 2) == tools["compare"]
    assert column("review", 2) == tools["review"]
    assert column("improve", 2) == tools["improve"]
    assert column("jobs", 2) == {"bulk_status"} | tools["bulk_status"]
    single = ["generate", "multimodal_generate", "multiturn_generate"]
    assert column("generate", 2) == set().union(single, *(tools[name] for name in single))
    assert all(f"`{name}`" in _PAGE for name in tools["generation_init"])


def _arguments(properties):
    """Return the names of a tool's arguments, also of those that are keys of `options`."""
    rare = properties.get("options", {}).get("description", "").partition(": ")[2]
    return {*properties, *re.findall(r"(\w+)(?: \{[^}]*\})?[,.]", rare)} - {"options"}


def test_every_key_of_the_configuration_on_the_page_exists():
    keys = column("bulk", 4)
    for key in keys:
        model: Any = Settings
        for part in key.split("."):
            assert part in model.model_fields, key
            model = model.model_fields[part].annotation
    sampling: Any = Settings.model_fields["sampling_params"].annotation
    not_of_jobs = {"reasoning", "rerank"}
    assert {f"sampling_params.{name}" for name in sampling.model_fields.keys() - not_of_jobs} <= keys
