"""A package that is not installed: what a user reads, and the command that installs it."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
from docx import Document
from fsspec.registry import _registry

from pdf_files import pdf_of_texts
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.inputs.remote_files import Store
from promptmill.system.installation import command_for, command_for_package


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that hides packages."""

    def hide(*names: str) -> None:
        real = importlib.util.find_spec

        def find_spec(name: str, package: str | None = None) -> Any:
            return None if name in names else real(name, package)

        monkeypatch.setattr("importlib.util.find_spec", find_spec)
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


@pytest.mark.parametrize(("name", "package"), [("in.pdf", "pypdfium2"), ("in.docx", "docx")])
def test_a_file_names_the_package_it_needs_and_the_command(bench, without, name, package):
    without(package)
    bench.input = bench.path / name
    _make(bench.input)
    said = " ".join(bench.fail("--prompt", "Of what? {{content}}").split())
    assert f"error: {name} needs {'python-docx' if package == 'docx' else package}. Run: {command_for('files')}" in said


def test_files_of_a_folder_that_are_left_out_name_the_command(bench, without):
    without("pypdfium2")
    bench.input = bench.path / "files"
    bench.input.mkdir()
    for name in ("in.pdf", "in.docx"):
        _make(bench.input / name)
    result = bench.run("--prompt", "Of what? {{content}}")
    said = " ".join(result.stderr.split())
    assert f"1 file left out, as it needs pypdfium2 (Run: {command_for('files')}): " in said


def _make(path: Any) -> None:
    if path.suffix == ".pdf":
        pdf_of_texts(path, ["tea"])
    else:
        document = Document()
        document.add_paragraph("tea")
        document.save(path)


@pytest.mark.parametrize(
    ("url", "hidden", "said", "command"),
    [
        ("s3://b/in.csv", "s3fs", "s3:// URLs need s3fs.", command_for("s3")),
        ("s3://b/in.csv", "fsspec", "s3:// URLs need fsspec.", command_for("s3")),
        ("gs://b/in.csv", "gcsfs", "gs:// URLs need gcsfs.", command_for_package("gcsfs")),
        ("abfs://b/in.csv", "adlfs", "abfs:// URLs need adlfs.", command_for_package("adlfs")),
    ],
)
def test_a_url_names_the_package_of_its_store(without, monkeypatch, url, hidden, said, command):
    monkeypatch.delitem(_registry, url.partition(":")[0], raising=False)  # another test may have used the store
    without(hidden)
    if hidden == "fsspec":
        for name in [name for name in sys.modules if name.startswith("fsspec.")]:
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PromptmillError) as caught:
        Store().open(url)
    assert caught.value.code is Code.MISSING_DEPENDENCY
    assert str(caught.value) == f"{said} Run: {command}"


@pytest.mark.features("checks")
def test_an_option_names_itself_and_not_a_key_of_the_file(bench):
    bench.write([{"text": "tea"}])
    assert "error: --language: is no code of a language" in bench.fail("--prompt", "{{text}}", "--language", "xx")
