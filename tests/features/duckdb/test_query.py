"""Queries of DuckDB as inputs, and tables of DuckDB as outputs. Pandas, polars and DuckDB write the files."""

from __future__ import annotations

import datetime as dt
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from fastmcp.exceptions import ToolError

import promptmill
from promptmill.core.errors import PromptmillError, redact
from promptmill.jobs.inputs import remote_files

duckdb = pytest.importorskip("duckdb")
_PROMPT = ("--prompt", "Say {{body}}")


@pytest.fixture
def database(bench: Any) -> Path:
    """A database with 100 mails, every second of them read."""
    path: Path = bench.path / "mails.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "CREATE TABLE inbox AS SELECT i AS id, 'mail ' || i AS body, i % 2 = 0 AS is_read,"
            " DATE '2026-01-05' AS day, [i, 2] AS list FROM range(100) t(i)"
        )
    return path


def _rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path)) as connection:
        return list(connection.execute(query).fetchall())


def _query(
    bench: Any,
    sql: str,
    output: str,
    *inputs: str,
    code: int = 0,
    arguments: Sequence[str] = (),
    prompt: str = "Say {{body}}",
) -> str:
    """Run `promptmill bulk --sql`, perhaps without INPUT; return what was printed."""
    command = bench.command("--sql", sql, "--prompt", prompt, *arguments)
    at = command.index(str(bench.input))
    bench.output = bench.path / output
    command[at : at + 2] = [*inputs, str(bench.output)]
    done = bench.here(command)
    assert done.returncode == code, done.stderr + done.stdout
    return done.stderr + done.stdout


def test_a_query_names_its_own_files(bench):
    pl.DataFrame({"id": [1, 2, 3], "body": ["a", "b", "c"]}).write_parquet(bench.path / "mails.parquet")
    pd.DataFrame({"id": [2, 3], "boss": ["x", "y"]}).to_csv(bench.path / "people.csv", index=False)
    sql = "select id, body, boss from 'mails.parquet' join 'people.csv' using (id) order by id desc;"
    _query(bench, sql, "out.jsonl")
    assert [(row["id"], row["boss"], row["answer"]) for row in bench.answers()] == [
        (3, "y", "echo: Say c"),
        (2, "x", "echo: Say b"),
    ]
    assert "is finished already" in _query(bench, sql, "out.jsonl")
    assert len(bench.upstream.seen) == 2


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl", "json", "csv.gz"])
def test_a_file_is_a_table_with_its_name(bench, suffix):
    path = bench.path / f"my mails.{suffix}"
    frame = pd.DataFrame({"id": [1, 2], "body": ["Grüße", "tea"]})
    if suffix == "parquet":
        frame.to_parquet(path)
    elif suffix.startswith("json"):
        frame.to_json(path, orient="records", lines=suffix == "jsonl")
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    _query(bench, 'select * from "my mails" where id = 1', "out.jsonl", str(path))
    assert [(row["id"], row["body"]) for row in bench.answers()] == [(1, "Grüße")]


def test_times_are_texts(bench):
    sql = "select 'tea' as body, timestamptz '2026-01-05 10:00:00+02' as at, time '10:00' as t, interval 1 day as i"
    _query(bench, f"set timezone = 'UTC'; {sql}", "out.jsonl", code=2)
    _query(bench, sql, "out.jsonl")
    (row,) = bench.answers()
    assert dt.datetime.fromisoformat(row["at"]) == dt.datetime(2026, 1, 5, 8, tzinfo=dt.UTC)
    assert (row["t"], row["i"]) == ("10:00:00", "1 day")


@pytest.mark.thorough
def test_rows_in_another_order_are_not_read_again_and_a_new_row_alone_is_sent(bench, database):
    sql = "select id, body from inbox where is_read"
    _query(bench, sql, "out.jsonl", str(database))
    assert len(bench.answers()) == len(bench.upstream.seen) == 50
    _rows(database, "CREATE TABLE sorted AS FROM inbox ORDER BY id DESC")
    _rows(database, "DROP TABLE inbox")
    _rows(database, "ALTER TABLE sorted RENAME TO inbox")
    assert "is finished already" in _query(bench, sql, "out.jsonl", str(database))
    _rows(database, "INSERT INTO inbox VALUES (100, 'new', true, NULL, NULL)")
    assert "50 of 51 rows keep their answers, 1 is new" in _query(bench, sql, "out.jsonl", str(database))
    assert len(bench.upstream.seen) == 51


def test_a_query_prints_nothing_at_its_end(bench, database):
    bench.input = database
    assert "leaked" not in bench.start(*_PROMPT, "--sql", "select body from inbox limit 1").communicate()[1]


@pytest.mark.thorough
def test_another_prompt_and_a_sample_read_the_rows_again(bench, database):
    sql = "select id, body from inbox"
    _query(bench, sql, "out.jsonl", str(database), arguments=("--sample", "5"))
    assert len(bench.answers()) == 5
    _query(bench, sql, "out.jsonl", str(database))
    assert len(bench.answers()) == len(bench.upstream.seen) == 100
    _query(bench, sql, "out.jsonl", str(database), arguments=("--again", "all"), prompt="Tell {{body}}")
    assert bench.answers()[7]["answer"] == "echo: Tell mail 7"


def test_a_killed_query_resumes(bench, database):
    bench.input = database
    sql = "--sql", "select id, body from inbox"
    done = bench.run(*_PROMPT, *sql, killed_at="after-write", concurrency=8)
    assert done.returncode == -signal.SIGKILL
    kept = len(bench.records())
    assert 0 < kept < 100
    bench.succeed(*_PROMPT, *sql, concurrency=8)
    assert [row["id"] for row in bench.answers()] == list(range(100))
    assert len(bench.upstream.seen) <= 100 + 8


@pytest.mark.thorough
def test_a_killed_query_of_which_the_files_are_gone_resumes_by_the_id_of_its_job(bench, database):
    bench.input = database
    done = bench.run(*_PROMPT, "--sql", "select id, body from inbox", killed_at="after-write", concurrency=8)
    assert done.returncode == -signal.SIGKILL
    database.unlink()
    done = bench.jobs(bench.folder.job_id, "--resume")
    assert done.returncode == 0, done.stderr + done.stdout
    assert len(bench.answers()) == 100


@pytest.mark.parametrize(
    ("sql", "inputs", "said"),
    [
        ("select id from 'none.parquet'", (), "--sql: IO Error: No files found that match the pattern"),
        ("selec 1", (), '--sql: Parser Error: syntax error at or near "selec".'),
        ("select bod from inbox", ("mails.duckdb",), '"bod" not found'),
        ("drop table inbox", ("mails.duckdb",), "--sql is one query"),
        ("select 1; drop table inbox", ("mails.duckdb",), "--sql is one query"),
        ("", (), "--sql is one query"),
        ("select 1", ("mail.duckdb",), "There is no input file"),
        ("select 1", ("book.xlsx",), "--sql reads databases and .jsonl, .ndjson, .json, .csv, .tsv, .parquet"),
        ("select 1", ("mails.duckdb", "mails.duckdb"), "--sql reads one database"),
        ("select 1", ("-",), "--sql works only for files and folders of this machine, URLs or a query"),
    ],
)
def test_a_wrong_query_names_its_mistake_and_sends_nothing(bench, database, sql, inputs, said):
    assert said in _query(bench, sql, "out.csv", *inputs, code=2)
    assert not bench.upstream.seen
    assert _rows(database, "SELECT count(*) FROM inbox") == [(100,)]


@pytest.mark.thorough
def test_an_extension_that_cannot_be_downloaded_is_named_without_the_password(bench, monkeypatch):
    monkeypatch.setenv("HOME", str(bench.path))  # no extensions of this user
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    said = _query(bench, "select 1", "out.csv", "postgres://ada:pass-word@127.0.0.1:9/db", code=2)
    assert "DuckDB needs its extension postgres" in said
    assert "INSTALL postgres" in said
    assert "pass-word" not in said


def test_passwords_of_connections_are_removed():
    assert redact("postgres://h/db?user=a&password=word&x=1") == "postgres://h/db?user=a&password=[redacted]&x=1"
    assert redact("from postgres_scan('host=h password=word dbname=d')") == (
        "from postgres_scan('host=h password=[redacted] dbname=d')"
    )
    assert redact("where password = 'x' and password=other.password") == (
        "where password = 'x' and password=[redacted]"
    )


def test_duckdb_is_named_where_it_is_missing(bench, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    said = _query(bench, "select 1 as body", "out.csv", code=2)
    assert "Queries of DuckDB and its files need duckdb. Run:" in said
    assert "[duckdb]'" in said


@pytest.mark.thorough
def test_a_table_of_duckdb_is_an_output_with_types(bench, database):
    bench.input, bench.output = Path(f"{database}#inbox"), Path(f"{database}#labels")
    bench.succeed(*_PROMPT)
    assert _rows(database, "SELECT id, body, is_read, list, answer FROM labels LIMIT 1") == [
        (0, "mail 0", True, [0, 2], "echo: Say mail 0")
    ]
    assert _rows(database, "SELECT count(*) FROM inbox") == [(100,)]
    bench.succeed(*_PROMPT)
    _rows(database, "DELETE FROM labels WHERE id = 3")
    assert "was changed after the job wrote it" in bench.fail(*_PROMPT)
    bench.succeed(*_PROMPT, "--overwrite")
    assert _rows(database, "SELECT count(*) FROM labels") == [(100,)]
    assert len(bench.upstream.seen) == 100
    assert [path.name for path in bench.path.iterdir() if "partial" in path.name] == []


@pytest.mark.thorough
@pytest.mark.parametrize("point", ["merging:50", "before-rename", "after-rename"])
def test_a_killed_output_of_duckdb_is_written_by_the_next_run(bench, database, point):
    bench.input, bench.output = Path(f"{database}#inbox"), bench.path / "new.duckdb#labels"
    assert bench.run(*_PROMPT, killed_at=point).returncode == -signal.SIGKILL
    bench.succeed(*_PROMPT)
    assert _rows(bench.path / "new.duckdb", "SELECT count(*) FROM labels") == [(100,)]
    assert len(bench.upstream.seen) == 100


def test_a_database_that_another_program_has_open_is_named(bench, database):
    bench.input, bench.output = Path(f"{database}#inbox"), bench.path / "out.csv"
    with duckdb.connect(str(database)):
        done = bench.run(*_PROMPT, apart=True)
    assert done.returncode == 2
    assert "mails.duckdb cannot be read: IO Error: Could not set lock" in done.stderr


def test_a_query_of_python(bench, database):
    options: dict[str, Any] = {"prompt": "Say {{body}}", "model": "m", "base_url": bench.upstream.url, "api_key": "k"}
    rows = promptmill.bulk(database, sql="select body from inbox where id < 2", **options).rows
    assert [row["answer"] for row in rows] == ["echo: Say mail 0", "echo: Say mail 1"]
    sql = f"select id, 'mail ' || id as body from '{bench.path}/mails.csv'"
    (bench.path / "mails.csv").write_text("id\n7\n")
    assert promptmill.bulk(None, sql=sql, **options).answers == ["echo: Say mail 7"]
    with pytest.raises(PromptmillError, match="`sql` works only for files and folders, URLs or a query"):
        promptmill.bulk(["a text"], sql="select 1", **options)


@pytest.mark.thorough
def test_a_url_that_a_query_compares_is_not_opened(bench, database):
    _query(bench, "select body from inbox where body not like 'foo://%' limit 1", "out.jsonl", str(database))
    assert len(bench.answers()) == 1


def test_a_query_reads_urls_by_fsspec(bench):
    fs = remote_files.filesystem("memory")
    fs.pipe_file("/mails.csv", b"id,body\n1,tea\n2,milk\n")
    try:
        _query(bench, "select * from 'memory://mails.csv' where id = 2", "out.jsonl")
        assert [row["answer"] for row in bench.answers()] == ["echo: Say milk"]
        _query(bench, "select * from mails where id = 1", "one.jsonl", "memory://mails.csv")
        assert [row["answer"] for row in bench.answers()] == ["echo: Say tea"]
    finally:
        fs.rm("/mails.csv")


@pytest.fixture
def foreign(bench: Any, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database whose views and macros read files beside it."""
    monkeypatch.chdir(bench.path)
    (bench.path / "private.txt").write_text("swordfish")
    with duckdb.connect(str(database)) as connection:
        for name, query in {
            "whole": "SELECT content AS body FROM read_text('private.txt')",
            "listed": "SELECT file AS body FROM glob('*')",
            "csv": "SELECT column0 AS body FROM read_csv('private.txt', header = false)",
            "blob": "SELECT content::VARCHAR AS body FROM read_blob('private.*')",
            "joined": "SELECT content AS body FROM inbox JOIN read_text('private.txt') ON true",
            "subquery": "SELECT (SELECT content FROM read_text('private.txt')) AS body FROM inbox",
            "secrets": "SELECT name AS body FROM duckdb_secrets()",
        }.items():
            connection.execute(f"CREATE VIEW {name} AS {query}")
        connection.execute("CREATE MACRO read(name) AS TABLE SELECT content AS body FROM read_text(name)")
        connection.execute("CREATE VIEW by_macro AS FROM read('private.txt')")
        connection.execute("CREATE VIEW plain AS SELECT id, body FROM inbox WHERE id < 3")
    return database


_READING = ("whole", "listed", "csv", "blob", "joined", "subquery", "secrets", "by_macro")


@pytest.mark.thorough
@pytest.mark.parametrize("view", _READING)
def test_a_view_reads_no_other_file(bench, foreign, upstream, view):
    bench.input = Path(f"{foreign}#{view}")
    done = bench.here(bench.command("--prompt", "Say {{body}}"))
    assert done.returncode == 2
    assert "a view reads another file; copy what it returns into a table" in done.stderr
    assert not upstream.seen


@pytest.mark.thorough
@pytest.mark.parametrize("view", _READING)
def test_a_view_reads_no_other_file_for_a_query(bench, foreign, upstream, view):
    said = _query(bench, f"select * from {view}", "out.jsonl", str(foreign), code=2)
    assert "no view of the database reads others" in said
    assert not upstream.seen


def test_a_view_of_a_database_and_files_that_its_query_names_are_read(bench, foreign):
    (bench.path / "parts").mkdir()
    for at in range(2):
        (bench.path / "parts" / f"{at}.csv").write_text(f"id,more\n{at},m{at}\n")
    for source, rows in (
        ("'parts/0.csv'", 1),
        ("'parts/*.csv'", 2),
        ("read_csv(['parts/0.csv', 'parts/1.csv'])", 2),
        (f"read_csv('{bench.path}/parts/[01].csv')", 2),
        ('(select * from "parts/1.csv")', 1),
    ):
        query = f"select body || more as body from plain join {source} using (id)"
        _query(bench, query, f"{abs(hash(source))}.jsonl", str(foreign))
        assert len(bench.answers()) == rows
    bench.input, bench.output = Path(f"{foreign}#plain"), bench.path / "plain.jsonl"
    bench.succeed("--prompt", "Say {{body}}")
    assert len(bench.answers()) == 3


@pytest.mark.thorough
def test_a_macro_of_a_database_replaces_no_function_of_an_output(bench, foreign):
    with duckdb.connect(str(foreign)) as connection:
        connection.execute(
            "CREATE MACRO read_parquet(name) AS TABLE SELECT content AS answer FROM read_text('private.txt')"
        )
    bench.prompts(1)
    bench.output = Path(f"{foreign}#answers")
    done = bench.here(bench.command())
    assert (done.returncode, _rows(foreign, "select answer from answers")) == (0, [("echo: prompt 0",)])


async def test_a_call_of_a_tool_names_no_database(bench, tools):
    bench.prompts(1)
    (bench.path / "mine.duckdb").touch()
    async with tools() as call:
        with pytest.raises(ToolError, match=r"input_file is a \.duckdb file; use one of \.jsonl"):
            await call("bulk_generate", input_file="mine.duckdb#t", output_file="o.jsonl")
