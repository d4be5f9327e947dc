"""Formats of another package, found by its entry point: whatever jobs do with files, they do with these files."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastmcp.exceptions import ToolError

from all_features import ALL_FEATURES
from bulk_calls import ended
from promptmill.core import feature
from promptmill.core.errors import PromptmillError
from promptmill.core.feature import Feature, Format
from promptmill.files import format_table
from promptmill.jobs.inputs.any_format import objects_in

_CODE = """
import json
from promptmill.core.feature import Feature, Format

FEATURE = Feature(
    words="notes, and pages of answers",
    formats=(
        Format(
            names=(".notes", ".note"), read="acme_notes:read", write="acme_notes:write", title="Notes",
            words="a note, `key=value;…`", is_read_by_calls=True, is_written_by_calls=True,
        ),
        Format(names=(".md",), write="acme_notes:write_page", is_written_by_calls=True),
    ),
)

def read(path):
    first, *lines = path.read_text().splitlines()
    if first != "notes":
        raise ValueError("its first line is not `notes`")
    return (dict(pair.split("=", 1) for pair in line.split(";")) for line in lines)

def write(rows, path):
    with path.open("x") as out:
        out.write("notes\\n")
        for row in rows:
            out.write(";".join(f"{name}={value}" for name, value in row.items() if isinstance(value, str)) + "\\n")

def write_page(rows, path):
    path.write_text("".join(f"## {row['prompt']}\\n\\n{row['answer']}\\n\\n" for row in rows))
"""


def _forget() -> None:
    feature._features.cache_clear()
    format_table._table_without.cache_clear()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the package, as pip would."""
    about = tmp_path / "packages" / "acme_notes-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme_notes\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[promptmill.features]\nacme_notes = acme_notes:FEATURE\n")
    (about.parent / "acme_notes.py").write_text(_CODE)
    monkeypatch.syspath_prepend(about.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(about.parent), os.environ.get("PYTHONPATH", "")]))
    if os.environ.get(feature.WITHOUT) == "all":  # all of the folder, not this one
        monkeypatch.setenv(feature.WITHOUT, ",".join(sorted(ALL_FEATURES)))
    _forget()
    yield
    _forget()
    sys.modules.pop("acme_notes", None)


@pytest.fixture
def notes(package: None, bench: Any) -> Any:
    """A bench with two notes, whose answers go into notes."""
    bench.input, bench.output = bench.path / "in.notes", bench.path / "out.notes"
    bench.input.write_text(_notes("one", "two"))
    return bench


def _notes(*prompts: str) -> str:
    return "notes\n" + "".join(f"k={at};prompt={prompt}\n" for at, prompt in enumerate(prompts))


def _answers(path: Path) -> list[Any]:
    return [row["answer"] for row in objects_in(path)]


def test_a_file_is_read_and_written_resumed_and_kept(notes):
    notes.succeed()
    assert notes.output.read_text().startswith("notes\nk=0;prompt=one;answer=echo: one;")
    notes.input.write_text(_notes("one", "three", "two"))
    notes.succeed()
    assert _answers(notes.output) == ["echo: one", "echo: three", "echo: two"]
    assert len(notes.upstream.seen) == 3
    notes.output.write_text("notes\nk=theirs\n")
    assert "overwrite" in notes.fail()
    assert notes.output.read_text() == "notes\nk=theirs\n"


def test_a_job_is_named_by_such_an_output(notes):
    notes.succeed()
    assert json.loads(notes.jobs(str(notes.output), "--rows", "--json").stdout)["total"] == 2


@pytest.mark.thorough
@pytest.mark.parametrize("given", ["notes", "notes/*.note*"])
def test_files_of_a_folder_and_of_a_pattern_are_one_input(notes, given):
    (notes.path / "notes" / "day=1").mkdir(parents=True)
    (notes.path / "notes" / "a.notes").write_text(_notes("one"))
    (notes.path / "notes" / "b.note").write_text(_notes("two"))
    (notes.path / "notes" / "day=1" / "c.notes.gz").write_bytes(gzip.compress(_notes("three").encode()))
    notes.input, notes.output = notes.path / given, notes.path / "out.jsonl"
    notes.succeed()
    found = [(row["source_file"], row["answer"], row.get("day")) for row in notes.answers()]
    expected = [("a.notes", "echo: one", None), ("b.note", "echo: two", None)]
    assert found == expected + [("day=1/c.notes.gz", "echo: three", "1")] * (given == "notes")


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_files_are_compressed(notes, ending):
    notes.output = notes.path / f"out.notes{ending}"
    notes.succeed()
    assert _answers(notes.output) == ["echo: one", "echo: two"]
    notes.input, notes.output = notes.output, notes.path / "again.jsonl"
    notes.succeed()
    assert [row["k"] for row in notes.answers()] == ["0", "1"]


@pytest.mark.processes
def test_a_detached_job_reads_and_writes_them(notes):
    for command in (notes.command("--detach"), notes.command(str(notes.output), "--follow", command="jobs")):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert _answers(notes.output) == ["echo: one", "echo: two"]


@pytest.mark.thorough
def test_shards_are_joined_into_one(notes):
    for shard in ("1/2", "2/2"):
        notes.succeed("--shard", shard)
    done = notes.jobs(str(notes.output), "--join")
    assert done.returncode == 0, done.stderr
    assert _answers(notes.output) == ["echo: one", "echo: two"]


def test_rows_are_printed_and_exported(notes):
    command = [str(each).replace(str(notes.output), "-") for each in notes.command("--output-format", "notes")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "answer=echo: two" in done.stdout, done.stderr
    notes.succeed()
    assert notes.jobs(str(notes.output), "--export", "more.note").returncode == 0
    assert _answers(notes.path / "more.note") == ["echo: one", "echo: two"]


async def test_calls_of_clients_name_them(notes, tools):
    async with tools() as call:
        job = await call("bulk_generate", input_file="in.notes", output_file="out.md")
        await ended(call, job["job_id"], "finished")
        assert (notes.path / "out.md").read_text() == "## one\n\necho: one\n\n## two\n\necho: two\n\n"
        (notes.path / "key.notes").write_text("notes\nprompt=one;password=hunter2hunter2\n")
        with pytest.raises(ToolError, match="password"):
            await call("bulk_generate", input_file="key.notes", output_file="key.jsonl")
        with pytest.raises(ToolError, match=r"use one of \.jsonl, \.csv, \.tsv, \.parquet, \.xlsx, \.notes, \.md here"):
            await call("bulk_generate", input_file="in.notes", output_file="out.doc")
        with pytest.raises(ToolError, match=r"input_file is a \.md file; use one of .*\.db, \.notes here"):
            await call("bulk_generate", input_file="out.md", output_file="more.notes")


def test_a_format_that_is_only_written_leaves_inputs_alone(notes):
    (notes.path / "texts").mkdir()
    (notes.path / "texts" / "notes.md").write_text("read me")
    notes.input = notes.path / "texts"
    notes.succeed("--prompt", "Say {{content}}")
    assert notes.upstream.seen[-1].prompt == "Say read me"
    notes.input, notes.output = notes.path / "in.notes", notes.path / "out.md"
    notes.succeed()
    assert notes.output.read_text().startswith("## one\n\necho: one\n")
    notes.input, notes.output = notes.output, notes.path / "out.jsonl"
    assert ".md files are written, not read; use one of .jsonl" in notes.fail("--each", "line")


def test_errors_list_the_formats_of_features(notes):
    notes.input = notes.path / "in.doc"
    notes.input.write_text("x")
    assert ", .notes, .note, with .gz" in notes.fail()
    notes.input, notes.output = notes.path / "in.notes", notes.path / "out.doc"
    assert ", .notes, .md; name it out.csv" in notes.fail()


def test_an_error_of_a_reader_or_a_writer_names_the_file(notes):
    notes.input.write_text("others\n")
    assert "in.notes cannot be read (ValueError: its first line is not `notes`)." in notes.fail()
    notes.input = notes.write([{"text": "a"}])
    notes.output = notes.path / "out.md"  # whose writer needs the column `prompt`
    said = notes.fail("--prompt", "{{text}}", code=75)
    assert "out.md cannot be written (KeyError: 'prompt')." in said
    assert not notes.output.exists()


@pytest.mark.thorough
def test_a_job_whose_format_is_gone_is_still_shown(notes, monkeypatch):
    notes.succeed()
    monkeypatch.setenv(feature.WITHOUT, "acme_notes")
    shown = notes.jobs(notes.status()["job_id"], "--rows", "--json")
    assert json.loads(shown.stdout)["total"] == 2
    notes.output = notes.path / "out.jsonl"
    assert "in.notes ends with '.notes'" in notes.fail()


def test_two_formats_with_one_suffix_are_refused(monkeypatch):
    known = {"acme": Feature(words="", formats=(Format(names=(".CSV",), write="m:f"),))}
    monkeypatch.setattr(feature, "_installed", lambda: iter(known.items()))
    monkeypatch.setenv(feature.WITHOUT, "")
    _forget()
    with pytest.raises(PromptmillError, match=r"'acme' adds the format '\.csv', which another format has already"):
        format_table.reading("a.csv")
    _forget()
