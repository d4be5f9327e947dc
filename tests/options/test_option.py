"""What an option's value names, and who may set it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from promptmill.options.option import Option, are_outside, is_outside
from promptmill.options.table import options


@pytest.mark.parametrize(
    "name", ["a.csv", "./a.csv", "sub/../a.csv", "yes,no", "", "a" * 5000, "/" * 5000, "\0", "你好"]
)
def test_a_text_that_leads_to_no_other_folder_is_inside(tmp_path, name):
    assert not is_outside(name, tmp_path)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a", "sub/../../a", "~/a", "~root/a", "link/a", "s3://a/b", "file:///etc/passwd"]
)
def test_a_path_or_url_that_leads_elsewhere_is_outside(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to("/etc")
    assert is_outside(name, tmp_path / "in")


@pytest.mark.parametrize("name", ["docs", "docs/", "docs/*/*.txt", "do*/*", "docs/sub/../*", "do[c]s", "**/*.txt"])
def test_a_folder_or_pattern_with_a_link_to_elsewhere_is_outside(tmp_path, name):
    (tmp_path / "docs" / "sub").mkdir(parents=True)
    (tmp_path / "docs" / "a.txt").touch()
    (tmp_path / "docs" / "sub" / "own").symlink_to(tmp_path / "docs" / "a.txt")
    (tmp_path / "other" / "bin").mkdir(parents=True)
    (tmp_path / "other" / "bin" / "python").symlink_to("/usr/bin/env")
    assert not are_outside(name, tmp_path)
    (tmp_path / "docs" / "sub" / "link.txt").symlink_to("/etc/passwd")
    assert are_outside(name, tmp_path)


def test_a_path_of_a_million_folders_is_not_resolved(monkeypatch):
    monkeypatch.setattr(os.path, "realpath", lambda *_: pytest.fail("it is resolved"))
    assert not is_outside("a/" * 1_000_000, Path("/srv"))


@pytest.mark.parametrize(
    ("option", "value", "is_of_operator"),
    [
        (Option("a", str, ""), "/etc/passwd", False),
        (Option("a", str, "", argument=None), "x", True),
        (Option("a", int, "", argument=None), 1, False),
        (Option("a", bool, "", argument=None), True, False),
        (Option("a", Path, "", argument=None), Path("a.csv"), False),
        (Option("a", Path, "", argument=None), Path("/etc/passwd"), True),
        (Option("a", str, "", names="more"), "x", True),
        (Option("a", str, "", names="nothing", argument=None), "/etc/passwd", False),
        (Option("a", str, "", names="file"), "a, /etc/passwd", True),
        (Option("a", str, "", names="file"), ["a", "../b"], True),
        (Option("a", str, "", names="file"), "json:dumps", False),
        (Option("a", str, "", names="file"), '{"$schema": "https://json-schema.org/a", "type": "object"}', False),
        (Option("a", str, "", names="file or function"), "email,os:system", True),
        (Option("a", str, "", names="file or function"), "os.path:join", True),
        (Option("a", str, "", names="file or function"), "__main__:x", True),
        (Option("a", str, "", names="file or function"), "phone:DE,email", False),
        (Option("a", str, "", names="file or function"), None, False),
    ],
)
def test_a_value_is_the_operators_if_it_names_more_than_data(tmp_path, option, value, is_of_operator):
    assert option.is_of_operator(value, tmp_path) == is_of_operator


def test_an_option_that_no_call_sets_is_the_operators_unless_it_is_marked():
    """A new option with a text that is not marked may run a program, so data do not set it."""
    texts = [each for each in options().values() if each.argument is None and each.type is str and not each.names]
    assert texts
    assert all(each.is_of_operator("x", Path()) for each in texts)


@pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX")
def test_a_prompt_is_data():
    prompt: Any = options()["prompt"]
    assert not prompt.is_of_operator("Read /etc/passwd: {{text}}", Path("/srv"))


@pytest.mark.parametrize("name", ["\0*", "a" * 300, "*" * 3000, "a/" * 1_000_000, ""])
def test_a_text_that_is_no_path_is_not_outside(tmp_path, name):
    assert not are_outside(name, tmp_path)
