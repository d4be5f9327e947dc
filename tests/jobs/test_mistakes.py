"""Typical mistakes with files: what is said is right, and doing as it says works."""

import gzip
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from promptmill.cli import foreground
from promptmill.core.errors import PromptmillError
from promptmill.core.money import dollars
from promptmill.jobs.rows.template import template_of
from replies import answer, late, status
from waiting import PATIENCE_S, eventually


@pytest.mark.thorough
def test_the_column_that_was_missing_can_be_named_on_the_same_output(bench):
    bench.input = bench.path / "in.csv"
    bench.input.write_text("question,answer\nWhat?,x\nWho?,y\n")
    said = bench.fail("--quiet")
    assert "name it with --prompt-column question" in said
    assert len(said.splitlines()) == 1  # the same command can only fail again
    bench.succeed("--prompt-column", "question")
    assert [row["answer_1"] for row in bench.answers()] == ["echo: What?", "echo: Who?"]
    assert "name it with --prompt-column" in bench.fail()


@pytest.mark.parametrize(
    ("header", "column"),
    [
        ("id,text", "text"),
        ("id,mail body,stars", "mail body"),
        ("ticket_id,note", "note"),
        ("id", "id"),
        ("{{x}},y", "y"),
        ("{{x}}", "column"),
    ],
)
def test_a_forgotten_prompt_is_shown_with_a_column_of_the_table(bench, header, column):
    bench.input = bench.path / "in.csv"
    bench.input.write_text(f"{header}\n{','.join('1' for _ in header.split(','))}\n")
    assert f"Ask about each row with --prompt '… {{{{{column}}}}}'" in bench.fail("--quiet")


def test_another_input_for_the_same_output_is_called_that(bench):
    bench.prompts(3)
    bench.succeed()
    first = bench.input
    made = bench.output.read_bytes()
    bench.input = bench.path / "other.jsonl"
    for text in ['{"prompt": "another"}\n', first.read_text().replace("prompt ", "PROMPT ")]:  # the same size, too
        bench.input.write_text(text)
        assert f"is the output of another input, {first}." in bench.fail()
    bench.input = first
    bench.succeed()
    assert (bench.output.read_bytes(), len(bench.upstream.seen)) == (made, 3)


@pytest.mark.thorough
def test_a_broken_line_is_mended_and_asked_alone_and_counted_once(bench):
    bench.write(['{"prompt": "a"}', '{"prompt": "b"', '{"prompt": "c"}'])
    said = bench.fail(code=1)
    assert "line 2 is not valid JSON" in said
    assert "correct these rows in in.jsonl and run the same command: it sends only them" in said
    assert "--again failed" not in said
    bench.write([{"prompt": name} for name in "abc"])
    assert bench.succeed()["requests"] == len(bench.upstream.seen) == 3


@pytest.mark.thorough
def test_a_job_that_has_answered_nothing_takes_the_input_as_it_is_now(bench):
    bench.write(['{"prompt": "a"'])
    bench.fail(code=1)
    bench.write([{"prompt": "a"}])
    assert bench.succeed()["requests"] == 1


def test_the_option_for_empty_rows_is_named_on_the_command_line(bench):
    bench.write([{"prompt": "a"}, {"prompt": ""}])
    said = bench.run().stdout
    assert "--skip-empty leaves empty rows out of the output" in said
    assert "skip_empty" not in said + bench.output.read_text()


def test_an_input_without_rows_is_one_line(bench):
    bench.write([])
    result = bench.run("--quiet")
    assert result.returncode == 0
    assert ": the input holds no rows, and so does the output\n" in result.stdout
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("in.jsonl", gzip.compress(b'{"prompt": "a"}\n', mtime=0), "is compressed with gzip; name it in.jsonl.gz"),
        ("in.jsonl.gz", gzip.compress(gzip.compress(b"{}")), "in.jsonl.gz is compressed twice; decompress it once"),
        ("in.csv", b"PK\x03\x04rest", "a ZIP archive or a workbook; unpack it, or give it the suffix .xlsx"),
        ("in.xlsx", b"PK\x03\x04rest", "in.xlsx cannot be read"),
        ("in.csv", "prompt\nGrüße\n".encode("latin-1"), '--encoding cp1252 reads line 2 as "Grüße"'),
        ("in.json", b'{"prompt":{"0":"a","1":"b"},"n":{"0":1,"1":2}}', "in.json holds a table by columns"),
        ("in.csv", b"prompt,b\nx,y,z\n", "Put a cell that holds the separator into double quotes"),
    ],
    ids=["gzip", "gzip twice", "zip", "spreadsheet", "latin-1", "columns", "separator"],
)
def test_a_file_that_is_something_else_is_told(bench, name, data, said):
    bench.input = bench.path / name
    bench.input.write_bytes(data)
    result = bench.run()
    assert result.returncode in {1, 2}
    assert said in result.stdout + result.stderr


def test_an_array_of_rows_is_read_whatever_the_suffix(bench):
    bench.input = bench.path / "in.jsonl"
    bench.input.write_text(json.dumps([{"prompt": "a"}, {"prompt": "b"}], indent=1))
    bench.succeed()
    assert [row["answer"] for row in bench.answers()] == ["echo: a", "echo: b"]


def test_a_folder_as_output_and_other_settings_are_told(bench):
    bench.prompts(1)
    output, bench.output = bench.output, bench.path
    assert "is a folder; name a file in it" in bench.fail()
    bench.output = output
    bench.succeed("--temperature", "0.2")
    assert "temperature was 0.2, now 0.9" in bench.fail("--temperature", "0.9")


def test_mistakes_at_the_prompt_name_the_option_that_was_meant(bench):
    bench.prompts(1)
    assert "--prompt names no column; --prompt-file ask.txt reads a prompt from a file" in bench.fail(
        "--prompt", "@ask.txt"
    )
    assert "unknown option --sheet; the sheet follows its workbook: book.xlsx#NAME" in bench.fail("--sheet", "Notes")
    assert "unknown option -p; did you mean --prompt?" in bench.fail("-p", "{{text}}")
    assert "unknown option --retry; did you mean --again?" in bench.fail("--retry")
    braces = " ".join(bench.fail("--schema", "{name, amount}").split())
    assert "it is not JSON: line 1, column 2" in braces
    assert "Fields in one line have no braces: name,amount:number." in braces


def test_a_table_without_a_line_of_names_is_called_that(bench):
    bench.input = bench.path / "in.csv"
    bench.input.write_text("1,great food\n2,cold soup\n")
    said = " ".join(bench.fail("--prompt", "Sum up {{text}}").split())
    assert "The first line looks like a row: write the names of the columns above it." in said
    bench.input.write_text("id,body\n1,great food\n")
    assert "looks like a row" not in bench.fail("--prompt", "Sum up {{text}}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Answer {{question}", "a }} is missing behind {{question."),
        ("Answer {{question", "a }} is missing behind {{question."),
        ("{{ question | uper }}", "there is no filter 'uper'; did you mean upper?"),
    ],
)
def test_what_is_wrong_with_a_template_is_told_in_a_line(text, said):
    with pytest.raises(PromptmillError) as caught:
        template_of(text)
    assert str(caught.value).endswith(said)


@pytest.mark.parametrize(
    "text", ["{{ row | tojson }}", "{% raw %}{{{% endraw %} {{x}}", '{"a": {{x}}}', "{{ {'a': x} }}"]
)
def test_what_only_looks_unclosed_is_a_template(text):
    template_of(text)


@pytest.mark.parametrize("options", [["--prompt", "Sum up {{text}}"], ["--prompt-column", "text"], []])
def test_one_object_around_the_rows_says_how_to_save_them(bench, options):
    bench.write([{"data": [{"text": "a"}, {"text": "b"}]}])
    said = " ".join(bench.fail(*options).split())
    assert "whose rows are in the list 'data'; save only that list as a file, such as with `jq " in said
    assert f"""`jq '.["data"]' {bench.input} > rows.json`.""" in said


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"chat": [{"role": "user", "content": "hi"}]}, ["--prompt-column", "chat"]),
        ({"question": "hi", "documents": [{"title": "a"}]}, ["--prompt-column", "question"]),
    ],
)
def test_a_file_of_one_row_with_a_list_in_it_is_no_object_around_rows(bench, row, options):
    bench.write([row])
    bench.succeed(*options)
    assert [found["answer"] for found in bench.answers()] == ["echo: hi"]


@pytest.mark.parametrize(
    "arguments",
    [
        *(["bulk", "NAME.jsonl", "o.jsonl"], ["bulk", "in.jsonl", "NAME.jsonl"], ["bulk", "in.jsonl/NAME", "o.jsonl"]),
        *(["bulk", "--dry-run", "in.jsonl", "NAME.jsonl"], ["bulk", "--dry-run", "NAME.jsonl", "o.jsonl"]),
        *(["jobs", "NAME.jsonl", "--join"], ["models", "--check", "--config", "NAME"]),
        ["generate", "a", "--config", "NAME/x.yaml"],
    ],
)
@pytest.mark.parametrize("length", [300, 5000])
def test_a_name_that_is_too_long_is_one_line(bench, arguments, length):
    bench.prompts(1)
    python = bench.command(command="jobs")[:3]
    named = [one.replace("in.jsonl/NAME", "NAME/NAME").replace("NAME", "x" * length) for one in arguments]
    failed = bench.here([*python, *named])
    assert failed.returncode == 2
    assert "too long" in failed.stderr or "longer than" in failed.stderr
    assert len(failed.stderr) < 400


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes")
@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda path: path.symlink_to("gone"), "is a link to gone, which does not exist"),
        (lambda path: path.symlink_to(path.name), "which does not exist"),
        (os.mkfifo, "is a pipe; write its rows into a file, or pipe them into `promptmill bulk - FILE`."),
        (lambda path: path.mkdir() or [(path / name).touch() for name in ("state.json", "a.arrow")], "`save_to_disk`"),
        (lambda path: path.mkdir() or (path / "dataset_dict.json").touch(), "`save_to_disk`"),
    ],
)
def test_what_is_no_file_of_rows_is_called_what_it_is(bench, made, said):
    made(bench.input)
    assert said in bench.fail().replace("\n", " ").replace("  ", " ")


@pytest.mark.thorough
def test_an_input_that_is_edited_while_the_job_runs_counts_for_the_next_run(bench):
    bench.prompts(300)
    bench.upstream.reply = late(0.05, answer())
    process = bench.start()
    eventually(lambda: len(bench.records()) > 50)
    bench.write([{"prompt": f"other {at}"} for at in range(300)])
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert [row["answer"] for row in bench.answers()] == [f"echo: prompt {at}" for at in range(300)]
    said = " ".join(bench.fail().split())
    assert "has changed since, and keeps 0 of the 300 answers" in said
    bench.upstream.reply = answer()
    bench.succeed("--keep")
    assert [row["answer"] for row in bench.answers()] == [f"echo: other {at}" for at in range(300)]


@pytest.mark.thorough
@pytest.mark.parametrize("options", [["--prompt", "Say {{text}}"], ["--prompt-column", "other"], ["other.jsonl"]])
def test_a_refused_command_changes_nothing_however_often_it_is_given(bench, options):
    bench.write([{"text": f"t{at}", "prompt": f"p{at}", "other": f"o{at}"} for at in range(3)])
    first = bench.input
    bench.succeed("--limit", "2")
    if options == ["other.jsonl"]:
        bench.input, options = bench.path / "other.jsonl", []
        bench.input.write_text(first.read_text().replace(': "p', ': "q'))
    before = [bench.folder.spec, bench.folder.order, bench.folder.result]
    for _ in range(3):
        assert "keeps 0 of the 2 answers of job" in bench.fail(*options)
        assert [bench.folder.spec, bench.folder.order, bench.folder.result] == before
    bench.input = first
    bench.succeed()
    assert len(bench.upstream.seen) == 3


@pytest.mark.thorough
@pytest.mark.parametrize(("answer", "sent"), [("a", 6), ("k", 3), ("o", 6), ("", 3)])
def test_a_user_at_a_terminal_is_asked_what_a_changed_prompt_means(bench, monkeypatch, answer, sent):
    bench.write([{"text": f"t{at}"} for at in range(3)])
    bench.succeed("--prompt", "One: {{text}}")
    monkeypatch.setattr(foreground, "is_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", lambda: answer)
    result = bench.run("--prompt", "Two: {{text}}", "--quiet")
    assert result.returncode == (0 if answer else 2)
    assert len(bench.upstream.seen) == sent
    other = bench.output.with_name(f"{bench.output.stem}-2{bench.output.suffix}")
    assert other.exists() == (answer == "o")
    said = "Two" if answer == "a" else "One"
    assert [row["answer"] for row in bench.answers()] == [f"echo: {said}: t{at}" for at in range(3)]


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="removes open files")
def test_a_folder_that_is_removed_while_the_job_runs_is_called_removed(bench):
    bench.prompts(2000)
    bench.upstream.reply = late(0.05, answer())
    process = bench.start()
    eventually(lambda: len(bench.records()) > 10)
    shutil.rmtree(bench.folder.path)
    out, err = process.communicate(timeout=PATIENCE_S)
    said = (out + err).replace("\n", " ")
    assert "was removed" in said
    assert "Run the job again; it begins anew" in " ".join(said.split())
    assert "Free space" not in said
    assert "is kept" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--input-format", "csv"], "--input-format works only for standard input (`-`)"),
        (["--output-format", "csv"], "--output-format works only if OUTPUT is `-`"),
        pytest.param(["--replicas", "3"], "--replicas needs --ray ADDRESS.", marks=pytest.mark.features("ray")),
        (["--max-cost", "-1"], "--max-cost: '-1' is out of range; write a number from 0 on"),
        (["--max-cost", "nan"], "--max-cost: 'nan' is out of range"),
        (["--max-cost", "1", "--max-tokens", "5"], "--max-cost: the price of test-model is not known"),
    ],
)
def test_an_option_that_cannot_take_effect_is_refused_by_its_name(bench, arguments, said):
    bench.prompts(1)
    assert said in bench.fail(*arguments, "--quiet")


def test_rows_on_stdin_are_no_files_to_choose_from(bench):
    bench.input = Path("-")
    assert "--each works only for files and folders of this machine; these rows" in bench.fail("--each", "line")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["out.jsonl", "--all"], "--all lists all jobs; omit JOB, or add --export."),
        (["out.jsonl", "--rows", "--cancel"], "--rows cannot be used with --cancel;"),
        (["out.jsonl", "--cancel", "--failed"], "--cancel cannot be used with --failed;"),
        (["out.jsonl", "--full"], "--full needs --rows."),
        (["out.jsonl", "--cache"], "--cache is the cache of all jobs; leave JOB out."),
        (["--clear"], "--clear needs --cache."),
        (["--rows"], "--rows needs a job, its output or a file of rows"),
        (["--join"], "--join needs the output"),
        (["--unfinished"], "--unfinished needs --prune AGE or --forget."),
        (["--forget"], "name the job to forget; `promptmill jobs` lists them."),
        (["out.jsonl", "--prune", "7d"], "--prune applies to all jobs older than AGE; leave JOB out."),
        (["--follow"], "name the job to follow; `promptmill jobs` lists them."),
    ],
)
def test_an_option_of_jobs_that_cannot_take_effect_is_refused(bench, arguments, said):
    refused = bench.jobs(*arguments)
    assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr


def test_a_missing_file_is_answered_with_the_nearest_name(bench):
    bench.prompts(1)
    right, bench.input = bench.input, bench.path / "inn.jsonl"
    assert f"Did you mean {right}?" in bench.fail()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "in.csv is empty: write the names of the columns"),
        ("\n1,a\n", "in.csv has no header"),
        ('id,"prompt\n1,a\n2,b\n', "The header of in.csv opens a quote that is not closed"),
        (
            "id,question\n1,a\n",
            "The input has no column 'prompt' or 'messages'; its columns: id, question. Ask about each",
        ),
    ],
)
def test_a_table_that_cannot_be_asked_leaves_no_job(bench, text, said):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_text(text)
    assert said in bench.fail()
    assert not bench.folder.path.exists()


def test_a_template_that_no_row_can_fill_leaves_no_job(bench):
    bench.write([{"text": "a"}])
    for checked in ([], ["--dry-run"]):
        assert "did you mean text?" in bench.fail("--prompt", "Say {{txt}}", *checked)
    assert not bench.folder.path.exists()


def test_a_model_that_is_not_there_leaves_no_job(bench):
    bench.prompts(1)
    bench.upstream.reply = status(404, "The model `m` does not exist", code="model_not_found")
    assert bench.fail("--quiet", code=1).startswith("error: ")
    assert (bench.folder.path.exists(), bench.jobs().stdout) == (False, "")


def test_a_file_in_latin_1_is_reported_before_the_first_request_and_read_with_its_encoding(bench):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_bytes("id,prompt\n1,tea\n2,caf\xe9\n".encode("latin-1"))
    said = bench.fail()
    assert (
        "a row is in another encoding, the first in line 3; --encoding cp1252 reads line 3 as '2,caf\xe9'"
        in said.replace('"', "'")
    )
    assert (bench.folder.path.exists(), bench.upstream.seen) == (False, [])
    bench.succeed("--encoding", "latin-1")
    assert "2,caf\xe9,echo: caf\xe9" in bench.output.read_text(encoding="utf-8")
    assert "'lattin' is no encoding" in bench.fail("--encoding", "lattin")


@pytest.mark.thorough
def test_a_run_that_keeps_earlier_answers_counts_its_own_requests(bench):
    bench.prompts(3)
    assert "  requests  3, 0 of them retries" in bench.run().stdout
    bench.prompts(5)
    assert "  requests  2 in the last run, 5 in all, 0 of them retries" in bench.run().stdout


@pytest.mark.thorough
def test_a_run_that_keeps_earlier_answers_says_its_own_cost(bench):
    price = ("--price", "1000/1000")
    bench.prompts(3)
    first = bench.succeed(*price)
    assert "run_cost" not in first
    bench.prompts(5)
    second = bench.succeed(*price)
    assert second["run_cost"] == pytest.approx(second["cost"] - first["cost"])
    said = bench.jobs(str(bench.output)).stdout
    assert f"  requests  2 in the last run ({dollars(second['run_cost'])}), 5 in all" in said
    bench.prompts(4)
    assert "  requests  0 in the last run, 5 in all" in bench.run(*price).stdout


_HUGE = "x" * (6 << 20)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["in.csv", "in.jsonl"])
def test_a_row_whose_prompt_is_too_long_fails_alone_and_keeps_its_cells(bench, name):
    rows = [{"id": str(at), "text": text} for at, text in enumerate(("a", _HUGE, "c"))]
    bench.input = bench.path / name
    lines = (
        map(json.dumps, rows) if name == "in.jsonl" else ["id,text", *(f"{row['id']},{row['text']}" for row in rows)]
    )
    bench.input.write_text("\n".join([*lines, ""]))
    said = bench.fail("--prompt", "{{text}}" * 12, code=1)
    assert "2 answered, 1 failed" in said
    assert "makes a prompt that is longer than 64 MiB" in said
    written = bench.answers()
    assert [{name: row[name] for name in ("id", "text")} for row in written] == rows
    assert [bool(row["answer"]) for row in written] == [True, False, True]


@pytest.mark.thorough
def test_a_line_that_is_too_long_says_so_where_a_template_asks_it(bench):
    bench.write([{"text": "a"}, {"text": "x" * (64 << 20)}, {"text": "c"}])
    said = bench.fail("--prompt", "Say {{text}}", code=1)
    assert "line 2: it is longer than 64 MiB." in said
    failed = bench.answers()[1]
    assert "line 2: it is longer than 64 MiB." in failed["error"]["message"]
    assert not any("problem" in field for field in failed), "fields of the input and of the answer alone"
