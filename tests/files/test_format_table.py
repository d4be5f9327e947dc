"""The table of formats: what its records say together, and that no other module has a list of suffixes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import promptmill
from promptmill.core.errors import PromptmillError
from promptmill.core.feature import Format, part
from promptmill.files import format_table, path_formats

SOURCE = Path(promptmill.__file__).parent
TABLE = SOURCE / "files" / "format_table.py"
_PAGES = Path("features", "review", "review_page.py")
"""Its two suffixes are names of a page that is written, which is no format of rows."""
_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{1,7}")


def _texts(node: ast.AST) -> Iterator[str]:
    """Yield the texts of a collection, the keys of a mapping, or the texts that are compared with one value."""
    match node:
        case ast.List() | ast.Tuple() | ast.Set():
            each = node.elts
        case ast.Dict():
            each = [key for key in node.keys if key is not None]
        case ast.BoolOp():
            each = [
                side for compared in node.values if isinstance(compared, ast.Compare) for side in compared.comparators
            ]
        case ast.Match():
            each = [case.pattern.value for case in node.cases if isinstance(case.pattern, ast.MatchValue)]
        case _:
            each = []
    yield from (one.value for one in each if isinstance(one, ast.Constant) and isinstance(one.value, str))


def _known() -> set[str]:
    """Return the suffixes of the table."""
    return {suffix for each in format_table.all_formats() for suffix in (*each.names, *each.only_read)}


def lists_of_suffixes(source: str) -> list[tuple[int, list[str]]]:
    """Return the lines of a source with two or more suffixes of the table in one collection, comparison or branch."""
    known, found = _known(), []
    for node in ast.walk(ast.parse(source)):
        suffixes = [text.lower() for text in _texts(node) if _SUFFIX.fullmatch(text.lower())]
        if len({*suffixes} & known) > 1:
            found.append((getattr(node, "lineno", 0), suffixes))
    return found


@pytest.mark.thorough
def test_no_module_has_a_list_of_suffixes_beside_the_table():
    assert lists_of_suffixes(TABLE.read_text(encoding="utf-8"))
    others = [file for file in SOURCE.rglob("*.py") if file != TABLE]
    found = {
        f"{file.relative_to(SOURCE)}:{line}": suffixes
        for file in others
        for line, suffixes in lists_of_suffixes(file.read_text(encoding="utf-8"))
        if file.relative_to(SOURCE) != _PAGES
    }
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        'KNOWN = frozenset({".csv", ".tsv"})',
        'if name.endswith((".CSV", ".xlsx")): pass',
        'READERS = {".parquet": "p", ".json": "j"}',
        'is_table = suffix == ".csv" or suffix == ".tsv"',
        'match suffix:\n    case ".csv":\n        pass\n    case ".tsv":\n        pass',
    ],
)
def test_a_list_of_suffixes_is_seen(source):
    assert lists_of_suffixes(source)


@pytest.mark.parametrize("source", ['x = (".csv",)', 'y = {".local", ".internal"}', 'a = ".csv" + ".partial"'])
def test_other_texts_are_no_lists_of_suffixes(source):
    assert not lists_of_suffixes(source)


def test_each_part_of_a_record_is_there():
    for each in format_table.all_formats():
        for name in (each.read, each.write, each.input, each.output, each.lines, each.store, each.database, each.text):
            assert not name or callable(part(name)), (each.key, name)


def test_each_format_of_the_core_is_found_by_its_suffixes_and_its_name():
    for each in format_table.all_formats():
        for suffix in each.names if each.is_written else ():
            assert format_table.writing(f"Rows{suffix.upper()}") is each
            assert format_table.of_output(each.key) is each
        for suffix in (*each.names, *each.only_read) if each.is_read else ():
            assert path_formats.reading(Path(f"rows.2024{suffix}.gz")) is each


@pytest.fixture
def acme(monkeypatch: pytest.MonkeyPatch) -> Iterator[Format]:
    """Have a format of another package."""
    found = Format(names=(".anno.json",), read="m:f", packages=("no_such_module",))
    monkeypatch.setattr(format_table, "formats", lambda: [("acme", found)])
    format_table._table_without.cache_clear()
    yield found
    format_table._table_without.cache_clear()


def test_a_suffix_of_two_parts_is_more_than_its_end(acme):
    assert format_table.reading("rows.anno.json") is acme
    assert format_table.reading("rows.json") is not acme


def test_a_module_of_another_package_is_installed_without_an_extra(acme):
    with pytest.raises(PromptmillError, match="need no-such-module") as caught:
        path_formats.check_installed(Path("rows.anno.json"))
    assert caught.value.hint.endswith("-m pip install no-such-module")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a.b.CSV", "csv"),
        (".csv", None),
        ("csv", None),
        ("a.csv.", None),
        ("a.csv/b", None),
        ("a" + ".b" * 200_000, None),
    ],
)
def test_a_name_of_any_length_is_looked_up_by_its_end(name, key):
    found = format_table.reading(name)
    assert (None if found is None else found.key) == key
