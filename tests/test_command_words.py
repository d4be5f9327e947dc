"""Texts that a tool or a file may show name tools and arguments, but no command of the shell."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import promptmill
from promptmill.core.errors import Code, PromptmillError, argument_name
from promptmill.server.bulk_tools import _argument_of

SOURCE = Path(promptmill.__file__).parent
OF_A_PERSON = {
    "cli": "the command line",
    "options/keywords.py": "help in an editor",
    "options/table.py": "one line of help for all faces, whose own texts are in `Argument`",
    "config/settings.py": "the documentation of the configuration",
    "features/report": "a page for a person",
    "features/openai_server/endpoints.py": "an error of HTTP that names the command for the server's operator",
    "server/stdio.py": "a person who starts the server in a terminal",
    "jobs/inputs/row_secrets.py": "a file that tools do not read: only a person can answer it",
}
COMMAND = re.compile(r"promptmill (?:bulk|compare|generate|improve|jobs|models|review)\b")


def _texts() -> Iterator[tuple[str, str]]:
    """Yield the file and text of each string constant of the files with `promptmill `, without docstrings."""
    for file in SOURCE.rglob("*.py"):
        if "promptmill " not in (source := file.read_text(encoding="utf-8")):
            continue
        tree, path = ast.parse(source), file.relative_to(SOURCE).as_posix()
        notes = {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
        for each in ast.walk(tree):
            if isinstance(each, ast.Constant) and isinstance(each.value, str) and id(each) not in notes:
                yield path, each.value


def _is_of_a_person(path: str) -> bool:
    folder, _, _ = path.rpartition("/")
    return any(path == name or f"{path}/".startswith(f"{name}/") for name in OF_A_PERSON) or (
        folder.startswith("features/")
        and path.endswith(("/command.py", "/command_examples.py", "/__init__.py", "options.py"))
    )


def test_no_text_for_all_faces_names_a_command_outside_of_a_name():
    assert not [(path, text) for path, text in _texts() if COMMAND.search(text) and not _is_of_a_person(path)]


def test_no_hint_names_a_command_over_mcp():
    for code in Code:
        error = PromptmillError(code, "It failed.")
        assert "promptmill" not in str(error).replace("a bug in promptmill", "")
        assert "promptmill" not in error.worded(_argument_of).replace("a bug in promptmill", "")
        assert error.worded(argument_name) == str(error)
