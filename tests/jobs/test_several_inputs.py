"""Jobs over several files, from the command line."""

import json
import os
import re

import pytest

from tables import write_rows


@pytest.mark.thorough
def test_a_job_over_a_folder_goes_on_and_finds_out_what_changed(bench):
    folder = bench.path / "data"
    folder.mkdir()
    for at in range(3):
        (folder / f"{at}.jsonl").write_text(json.dumps({"q": f"prompt {at}", "id": at}) + "\n")
    bench.input = folder
    options = ("--prompt-column", "q")
    bench.succeed(*options)
    assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(3)]
    assert [row["source_file"] for row in bench.answers()] == ["0.jsonl", "1.jsonl", "2.jsonl"]
    assert bench.succeed(*options)["done"] == 3
    assert len(bench.upstream.seen) == 3
    (folder / "3.jsonl").write_text('{"q": "prompt 3", "id": 1}\n')
    assert "keeps 0 of the 3 answers" in bench.fail("--prompt-column", "id")
    bench.succeed("--prompt-column", "q")
    assert len(bench.upstream.seen) == 4
    assert [row["source_file"] for row in bench.answers()] == [f"{at}.jsonl" for at in range(4)]


@pytest.mark.parametrize("name", ["in.jsonl", "in.json", "in.csv", "in.parquet"])
def test_validate_notes_rows_that_repeat_an_id(bench, name):
    bench.input = bench.path / name
    write_rows(bench.input, [{"prompt": prompt, "id": own} for prompt, own in zip("abc", "xyx", strict=True)])
    checked = json.loads(bench.run("--dry-run", "--json").stdout)
    assert checked["invalid"] == 0
    (note,) = [note for note in checked["notes"] if "`id`" in note]
    assert re.fullmatch(r"(\w+) 3 has the `id` of \1 1; repeated ids in all: 1\.", note)
    assert not bench.upstream.seen


def test_a_file_with_an_underscore_is_read_and_one_whose_name_is_not_utf8_is_named(bench):
    folder = bench.path / "data"
    (folder / "_sub").mkdir(parents=True)
    for name in ("_a.txt", "_sub/b.txt", "_SUCCESS"):
        (folder / name).write_text(name)
    (folder / os.fsdecode(b"M\xfcller.txt")).write_text("c")
    bench.input = folder
    done = bench.run("--prompt", "{{content}}")
    assert [row["answer"] for row in bench.answers()] == ["echo: _a.txt", "echo: _sub/b.txt"]
    assert "name that is not UTF-8" in done.stderr
    (folder / os.fsdecode(b"M\xfcller.csv")).write_text("text\na\n")
    assert "M\ufffdller.csv has a name that is not UTF-8; rename it" in bench.fail("--prompt", "{{text}}")


@pytest.mark.thorough
@pytest.mark.parametrize("given", ["", "*.csv"])
def test_the_output_among_the_inputs_is_left_out_with_a_note(bench, given):
    folder = bench.path / "data"
    folder.mkdir()
    (folder / "a.csv").write_text("text\na\n")
    bench.input, bench.output = folder / given, folder / "out.csv"
    note = "1 file left out, as it is the output: out.csv"
    assert note not in bench.run("--prompt", "{{text}}").stderr
    assert note in bench.run("--prompt", "{{text}}").stderr
    assert [seen.prompt for seen in bench.upstream.seen] == ["a"]
